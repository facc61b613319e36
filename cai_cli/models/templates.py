r"""Chat templates: programs by others that turn a conversation into text. Installed, tried once, and never
trusted.

A template may refuse a conversation (roles must alternate, no system turn): that row is rejected with the
template's words. One that fails by itself, or that leaves the text of a turn out, is refused by name before
any work. A turn whose text spells out a control token, such as `<|im_end|>`, is rejected: as ids it would be
the token itself, and end or forge a turn.

The transcript template is installed into tokenizers that have none: `\n\nHuman: ...\n\nAssistant: ...<eos>`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from cai_cli.errors import UserError
from cai_cli.prompting.thinking import ALL_MARKS
from cai_cli.rows.conversation import Conversation, message, split_system, system_in_first_user_turn
from cai_cli.rows.json_text import JsonError, load_json
from cai_cli.rows.storage import read_input

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TRANSCRIPT_TEMPLATE = (
    "{{- bos_token if bos_token else '' }}"
    "{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}"
    "{%- set turns = messages[1:] if system else messages %}"
    "{%- for turn in turns %}"
    "{%- if turn['role'] == 'user' %}{{- '\\n\\nHuman: ' + (system if loop.first else '') + turn['content'] }}"
    "{%- else %}{{- '\\n\\nAssistant: ' + turn['content'] }}"
    "{%- if not (loop.last and continue_final_message is defined and continue_final_message) %}{{- eos_token }}{%- endif %}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '\\n\\nAssistant:' }}{%- endif %}"
)
# What running a template can raise: it is a program. Running out of memory or being interrupted is none of
# its words.
FAULTS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
USER_PROBE, REPLY_PROBE = "how tall is a giraffe", "as tall as a house"


class UnfitRow(ValueError):
    """A row that cannot be turned into token ids as it must: `reason` is a short name for the rejects file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


def install_template(tokenizer: PreTrainedTokenizerBase, file: Path | None = None) -> None:
    """Give the tokenizer the chat template of `file`, else the transcript template where it has none."""
    if file is not None:
        try:
            tokenizer.chat_template = read_input(file, "--chat-template takes a Jinja file").decode()
        except UnicodeDecodeError:
            raise UserError(f"--chat-template {file}: not UTF-8 text", "give a Jinja file") from None
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = TRANSCRIPT_TEMPLATE
    check_template(tokenizer, f"--chat-template {file}" if file else "--model")


def require_template(tokenizer: PreTrainedTokenizerBase, flag: str) -> None:
    if tokenizer.chat_template is None:
        raise UserError(
            f"{flag}: its tokenizer has no chat template", "train it with `cai sft`, which installs one"
        )
    check_template(tokenizer, flag)


def check_template(tokenizer: PreTrainedTokenizerBase, flag: str) -> None:
    """Try the template on one question and its answer. Raises UserError where it fails, or leaves either text
    out.
    """
    chat = [message("user", USER_PROBE), message("assistant", REPLY_PROBE)]
    hint = "mend it in the model's tokenizer files, or let `cai sft --chat-template FILE` install another"
    for turns in (chat[:1], chat):
        try:
            text = apply(tokenizer, turns, add_generation_prompt=len(turns) == 1)
        except UnfitRow as error:
            raise UserError(f"{flag}: its chat template fails: {error.detail}", hint) from None
        for turn in turns:
            if turn["content"] not in text:
                told = f"leaves out what the {turn['role']} says where a turn is plain text"
                raise UserError(f"{flag}: its chat template {told}", hint)


def check_settings(
    tokenizer: PreTrainedTokenizerBase, settings: Iterable[str], flag: str = "--model"
) -> None:
    """Raise UserError for a setting of --chat-template-kwargs that stands nowhere in the template, so that
    nothing reads it.
    """
    template = str(tokenizer.chat_template or "")
    for name in settings:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            given = (
                "--feedback-chat-template-kwargs"
                if flag.startswith("--feedback-model")
                else "--chat-template-kwargs"
            )
            why = (
                f"the chat template of {flag} does not read it"
                if template
                else f"{flag} has no chat template"
            )
            raise UserError(f"{given}: {name} does nothing: {why}", "leave it out, or correct its name")


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **settings: Any) -> str:
    """The conversation as text through the chat template; a template without a system role gets it in the
    first user turn.

    Raises UnfitRow where the template refuses it, or where a turn spells out a control token.
    """
    for turn in conversation:
        check_text(tokenizer, turn["content"])
    system, turns = split_system(conversation)
    try:
        text = apply(tokenizer, conversation, **settings)
        # A template that drops the system turn renders the same without it.
        if not system or text != apply(tokenizer, turns, **settings):
            return text
    except UnfitRow:
        if not system:
            raise
    return apply(tokenizer, system_in_first_user_turn(conversation), **settings)


def apply(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **settings: Any) -> str:
    """What the template makes of the conversation. Raises UnfitRow with the template's words, and its line
    where it fails.
    """
    from jinja2.exceptions import TemplateError

    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, **settings))
    except (TemplateError, *FAULTS) as error:
        words = " ".join(str(error).split())
        if type(error) is not TemplateError:  # which is what the template raises on purpose
            kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
            words = f"{kind}{words}{line_of(error)}"
        raise UnfitRow("template_refused", words) from None


def line_of(error: BaseException) -> str:
    """Where in the template it was raised, as far as Jinja tells: ` (line 3 of the template)`."""
    line = getattr(error, "lineno", None)
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line} of the template)" if line else ""


# Control tokens

CONTROL: WeakKeyDictionary[Any, re.Pattern[str]] = WeakKeyDictionary()  # of each tokenizer, once


def check_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """Raise UnfitRow where a text of people or models spells out a control token, which would be read as the
    token.
    """
    if found := control_pattern(tokenizer).search(text):
        raise UnfitRow("control_token", f"the text spells out {found[0]!r}, a control token of this model")


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """What finds the model's control tokens in a text."""
    if tokenizer not in CONTROL:
        names = sorted(
            (str(tokenizer.convert_ids_to_tokens(index)) for index in control_ids(tokenizer)),
            key=len,
            reverse=True,
        )
        CONTROL[tokenizer] = re.compile("|".join(map(re.escape, names)) or r"(?!)")
    return CONTROL[tokenizer]


def control_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Tokens that are special or that the chat template writes, but for those that thoughts stand between.

    `all_special_ids` has only the named ones (EOS, pad ...): Llama 3's <|eot_id|> is special without a name,
    and DeepSeek's <｜User｜> is added without being marked special.
    """
    template = str(tokenizer.chat_template or "")
    thoughts = {mark for marks in ALL_MARKS for mark in marks}
    found = set(tokenizer.all_special_ids)
    for index, token in tokenizer.added_tokens_decoder.items():
        if token.special or (token.content.strip() and token.content in template):
            found.add(index)
    return {index for index in found if str(tokenizer.convert_ids_to_tokens(index)) not in thoughts}


# Hashes by which models are matched


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else None


def template_kwargs(text: str | None) -> dict[str, Any]:
    """The settings in a `--chat-template-kwargs`. Raises UserError."""
    try:
        settings = load_json(text or "{}")
    except JsonError as error:
        raise UserError(
            f"--chat-template-kwargs: not valid JSON: {error.message}", """write '{"name": value}'"""
        ) from None
    if not isinstance(settings, dict):
        raise UserError("--chat-template-kwargs: expected a JSON object", """write '{"name": value}'""")
    return settings

r"""From conversations to token ids: chat templates, one BOS, the prompt's tokens a prefix of prompt+completion, stop ids.

The transcript template is installed into tokenizers that have no chat template:
`\n\nHuman: ...\n\nAssistant: ...<eos>`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.conversation import HUMAN, Conversation, message, split_system, system_in_first_user_turn
from cai_cli.errors import UserError
from cai_cli.storage import read_input

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
            raise UserError(f"--chat-template {file}: not UTF-8 text") from None
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = TRANSCRIPT_TEMPLATE


def require_template(tokenizer: PreTrainedTokenizerBase, flag: str) -> None:
    if tokenizer.chat_template is None:
        raise UserError(f"{flag}: its tokenizer has no chat template", "train it with `cai sft`, which installs one")


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return hashlib.sha256(str(template).encode()).hexdigest()[:16] if template else None


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for two tokenizers that give the same ids to the same tokens."""
    state = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])):
        state.update(f"{index}\t{token}\n".encode())
    return state.hexdigest()[:16]


def require_same_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, flag: str) -> None:
    """Stop where `other` gives a token of `own` another id, or none: the model would read other words than it learned."""
    ids = other.get_vocab()
    for token, index in own.get_vocab().items():
        if ids.get(token) != index and index != own.pad_token_id:
            raise UserError(
                f"{flag}: token {token!r} is {ids.get(token)} there and {index} in the model", "take one of its family"
            )


def render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, **settings: Any) -> str:
    """The conversation as text through the chat template; a template without a system role gets it in the first user turn."""
    from jinja2.exceptions import TemplateError

    system, turns = split_system(conversation)
    try:
        text = str(tokenizer.apply_chat_template(conversation, tokenize=False, **settings))
        # A template that drops the system turn renders the same without it.
        if not system or text != tokenizer.apply_chat_template(turns, tokenize=False, **settings):
            return text
    except TemplateError as error:
        if not system:
            raise UnfitRow("template_refused", str(error)) from None
    merged = system_in_first_user_turn(conversation)
    return str(tokenizer.apply_chat_template(merged, tokenize=False, **settings))


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text that a chat template made: it holds its special tokens already, so none is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text, with the BOS the tokenizer adds by itself and never a closing EOS."""
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Conversation, **template_kwargs: Any) -> list[int]:
    """Ids of a prompt up to where the assistant's reply starts."""
    return encode_rendered(tokenizer, render(tokenizer, prompt, add_generation_prompt=True, **template_kwargs))


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> list[int]:
    """Ids that end a reply: the tokenizer's EOS, generation_config's EOS ids, the template's end of turn."""
    found = {tokenizer.eos_token_id}
    configured = getattr(generation_config, "eos_token_id", None)
    if configured is not None:
        found.update(configured if isinstance(configured, list) else [configured])
    if tokenizer.chat_template is not None:
        found.update(end_of_turn_ids(tokenizer))
    return sorted(index for index in found if index is not None)


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special token that the template puts right after an assistant's text, if any."""
    probe = "probe"
    text = render(tokenizer, [message("user", probe), message("assistant", probe)])
    tail = text[text.rindex(probe) + len(probe) :] if probe in text else ""
    special = special_ids(tokenizer)
    for index in encode_rendered(tokenizer, tail):
        if index in special:
            return [index]
    return []


def turn_start_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens that the template puts in front of a user's text: a reply that goes on with one speaks for the user."""
    if tokenizer.chat_template is None:
        return set()
    probe = "probe"
    head, found, _ = render(tokenizer, [message("user", probe)]).partition(probe)
    ids = encode_rendered(tokenizer, head) if found else []
    return {index for index in ids if index in special_ids(tokenizer)}


def special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """`all_special_ids` has only the named ones (EOS, pad ...); Llama 3's <|eot_id|> is special without a name."""
    return set(tokenizer.all_special_ids) | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, completion: Conversation, stops: list[int], **template_kwargs: Any
) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the completion, which ends in a stop token; template text after it is cut.

    Raises UnfitRow where the prompt's tokens are not a prefix of the whole's.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, **template_kwargs)
    whole = encode_rendered(tokenizer, render(tokenizer, [*prompt, *completion], **template_kwargs))
    if whole[: len(prompt_ids)] != prompt_ids:
        raise UnfitRow("prompt_not_a_prefix", "the template or tokenizer changes the prompt when a reply follows")
    completion_ids = whole[len(prompt_ids) :]
    last = max((n for n, index in enumerate(completion_ids) if index in stops), default=None)
    if last is None:
        return prompt_ids, [*completion_ids, tokenizer.eos_token_id]
    return prompt_ids, completion_ids[: last + 1]


def encode_scored(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, completion: Conversation, stops: list[int], max_length: int
) -> list[int]:
    """What a preference model reads of a conversation; raises UnfitRow where it is longer than `max_length`."""
    prompt_ids, completion_ids = encode_pair(tokenizer, prompt, completion, stops)
    ids = close_with_eos(prompt_ids + completion_ids, int(tokenizer.eos_token_id))
    if len(ids) > max_length:
        raise UnfitRow("too_long", f"{len(ids)} tokens, at most {max_length} fit")
    return ids


def close_with_eos(ids: list[int], eos: int) -> list[int]:
    """What a preference model reads: the sequence closed by EOS, on which the score is read."""
    return ids if ids and ids[-1] == eos else [*ids, eos]


class Renderer:
    """A tokenizer as the stages see it: prompts (plain text or conversations) to exact text and ids."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, flag: str = "--model", template_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.flag = flag
        self.template_kwargs = template_kwargs or {}

    @property
    def has_own_template(self) -> bool:
        """Whether the model has a chat template other than the transcript form."""
        if self.tokenizer.chat_template is None:
            return False
        return f"{HUMAN} probe" not in render(self.tokenizer, [message("user", "probe")])

    def render(self, prompt: str | Conversation) -> str:
        """The exact text the model gets; a closing assistant turn is left open, to be continued."""
        if isinstance(prompt, str):
            return prompt
        require_template(self.tokenizer, self.flag)
        if prompt[-1]["role"] == "assistant":
            return render(self.tokenizer, prompt, continue_final_message=True, **self.template_kwargs)
        return render(self.tokenizer, prompt, add_generation_prompt=True, **self.template_kwargs)

    def encode(self, prompt: str | Conversation, suffix: str = "") -> list[int]:
        """Ids of the prompt and what follows it, encoded together."""
        text = self.render(prompt) + suffix
        return encode_text(self.tokenizer, text) if isinstance(prompt, str) else encode_rendered(self.tokenizer, text)

    def encode_all(self, prompts: list[tuple[str | Conversation, list[str]]]) -> list[list[list[int]]]:
        """Ids of each prompt with each of its suffixes, encoded together. Many texts at once, which tokenizers do faster."""
        texts: dict[bool, list[str]] = {True: [], False: []}  # plain or rendered
        for prompt, suffixes in prompts:
            text = self.render(prompt)
            texts[isinstance(prompt, str)] += [text + suffix for suffix in suffixes]
        encoded = {plain: iter(self._encode_texts(group, plain)) for plain, group in texts.items()}
        return [[next(encoded[isinstance(prompt, str)]) for _ in suffixes] for prompt, suffixes in prompts]

    def _encode_texts(self, texts: list[str], plain: bool) -> list[list[int]]:
        """As `encode_text` where they are plain, else as `encode_rendered`."""
        if not texts:
            return []
        rows = self._ids_of_texts(texts, add_special_tokens=plain)
        eos, word = self.tokenizer.eos_token_id, str(self.tokenizer.eos_token)
        if not plain:
            return rows
        return [
            row[:-1] if row and row[-1] == eos and not text.endswith(word) else row for row, text in zip(rows, texts, strict=True)
        ]

    def _ids_of_texts(self, texts: list[str], **settings: Any) -> list[list[int]]:
        """What the tokenizer gives, from the library below it where that gives the same: without the tokens' places in the
        text it takes two thirds of the time.
        """
        from tokenizers import Tokenizer

        def ids_of(some: list[str]) -> list[list[int]]:
            return list(self.tokenizer(some, return_attention_mask=False, **settings)["input_ids"])

        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            return ids_of(texts)
        first = ids_of(texts[:1])  # this call also undoes the backend's padding and truncation
        if len(texts) == 1:
            return first
        rows = [row.ids for row in backend.encode_batch_fast(texts, **settings)]
        return rows if rows[:1] == first else ids_of(texts)

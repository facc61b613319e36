"""From conversations to token ids: one BOS, the prompt's tokens a prefix of prompt+completion, stop ids,
thoughts kept apart.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Literal

from cai_cli.errors import UserError
from cai_cli.models.templates import (
    UnfitRow,
    check_settings,
    check_template,
    check_text,
    control_ids,
    render,
    require_template,
)
from cai_cli.prompting.thinking import TURN_END, Thinking, thinking_of
from cai_cli.rows.conversation import HUMAN, Conversation, message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Rendering = Literal["auto", "transcript", "chat"]


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Equal for two tokenizers that give the same ids to the same tokens."""
    state = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda pair: (pair[1], pair[0])):
        state.update(f"{index}\t{token}\n".encode())
    return state.hexdigest()[:16]


def require_same_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, flag: str) -> None:
    """Stop where `other` gives a token of `own` another id, or none: the model would read other words than it
    learned.
    """
    ids = other.get_vocab()
    for token, index in own.get_vocab().items():
        if ids.get(token) != index and index != own.pad_token_id:
            raise UserError(
                f"{flag}: token {token!r} is {ids.get(token)} there and {index} in the model",
                "take one of its family",
            )


def encode_rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of text that a chat template made: it holds its special tokens already, so none is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text, with the BOS the tokenizer adds by itself and never a closing EOS."""
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, **template_kwargs: Any
) -> list[int]:
    """Ids of a prompt up to where the assistant's reply starts."""
    return encode_rendered(
        tokenizer, render(tokenizer, prompt, add_generation_prompt=True, **template_kwargs)
    )


def stop_ids(tokenizer: PreTrainedTokenizerBase, generation_config: Any = None) -> list[int]:
    """Ids that end a reply: the tokenizer's EOS, generation_config's EOS ids, the template's end of turn."""
    found = {tokenizer.eos_token_id}
    configured = getattr(generation_config, "eos_token_id", None)
    if configured is not None:
        found.update(configured if isinstance(configured, list) else [configured])
    if tokenizer.chat_template is not None:
        found.update(end_of_turn_ids(tokenizer))
    if thinking_format(tokenizer).channels:  # the thought's turn ends with it, and the answer follows
        found.discard(tokenizer.convert_tokens_to_ids(TURN_END))
    return sorted(index for index in found if index is not None)


def end_of_turn_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The control token that the template puts right after an assistant's text, if any."""
    probe = "probe"
    text = render(tokenizer, [message("user", probe), message("assistant", probe)])
    tail = text[text.rindex(probe) + len(probe) :] if probe in text else ""
    control = control_ids(tokenizer)
    for index in encode_rendered(tokenizer, tail):
        if index in control:
            return [index]
    return []


def turn_start_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The control tokens that the template puts in front of a user's text: a reply that goes on with one
    speaks for the user.
    """
    if tokenizer.chat_template is None:
        return set()
    probe = "probe"
    head, found, _ = render(tokenizer, [message("user", probe)]).partition(probe)
    ids = encode_rendered(tokenizer, head) if found else []
    return set(ids) & control_ids(tokenizer)


def reply_header_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the template opens a reply with, from its first control token on: a reply that goes on with it is
    no reply.
    """
    if tokenizer.chat_template is None:
        return []
    chat = [message("user", "probe")]
    header = render(tokenizer, chat, add_generation_prompt=True).removeprefix(render(tokenizer, chat))
    ids = encode_rendered(tokenizer, header)
    control = control_ids(tokenizer)
    return ids[next((n for n, index in enumerate(ids) if index in control), len(ids)) :]


def thinking_format(tokenizer: PreTrainedTokenizerBase) -> Thinking:
    """How the model writes its reasoning."""
    return thinking_of(added_tokens(tokenizer), str(tokenizer.chat_template or ""))[0]


def require_known_thinking(tokenizer: PreTrainedTokenizerBase, flag: str) -> Thinking:
    """How the model writes its reasoning. Raises UserError where it has marks for it that are not understood.

    What it thought would end up in its replies, and in what is trained on them.
    """
    found, unknown = thinking_of(added_tokens(tokenizer), str(tokenizer.chat_template or ""))
    if unknown:
        hint = "its thoughts could not be told from its answers: take a model whose marks are known, such as <think>"
        raise UserError(
            f"{flag}: it marks its reasoning by {', '.join(unknown[:4])}, which is not understood", hint
        )
    return found


def check_thoughts_are_kept(tokenizer: PreTrainedTokenizerBase, flag: str, **template_kwargs: Any) -> None:
    """Raise UserError where the template leaves out of a reply what was thought in front of it."""
    if thinking_format(tokenizer).channels:
        raise UserError(
            f"--train-on-thinking: {flag} thinks in channels, which cannot be put back", "leave it out"
        )
    thought = "what a tall animal"
    reply = thinking_format(tokenizer).join(thought, "as tall as a house")
    chat = [message("user", "how tall is a giraffe"), message("assistant", reply)]
    if thought not in render(tokenizer, chat, **template_kwargs):
        hint = "leave it out, or install a template that keeps thoughts: --chat-template FILE"
        raise UserError(
            f"--train-on-thinking: the chat template of {flag} leaves thoughts out of replies", hint
        )


def added_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    return {token.content for token in tokenizer.added_tokens_decoder.values()}


def encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Conversation,
    completion: Conversation,
    stops: list[int],
    **template_kwargs: Any,
) -> tuple[list[int], list[int]]:
    """Ids of the prompt and of the completion, which ends in a stop token; template text after it is cut.

    Raises UnfitRow where the prompt's tokens are not a prefix of the whole's.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, **template_kwargs)
    whole = encode_rendered(tokenizer, render(tokenizer, [*prompt, *completion], **template_kwargs))
    if whole[: len(prompt_ids)] != prompt_ids:
        raise UnfitRow(
            "prompt_not_a_prefix", "the template or tokenizer changes the prompt when a reply follows"
        )
    completion_ids = whole[len(prompt_ids) :]
    last = max((n for n, index in enumerate(completion_ids) if index in stops), default=None)
    if last is None:
        return prompt_ids, [*completion_ids, tokenizer.eos_token_id]
    return prompt_ids, completion_ids[: last + 1]


def encode_scored(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Conversation,
    completion: Conversation,
    stops: list[int],
    max_length: int,
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
        self,
        tokenizer: PreTrainedTokenizerBase,
        flag: str = "--model",
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.flag = flag
        self.template_kwargs = template_kwargs or {}
        check_settings(tokenizer, self.template_kwargs, flag)
        if self.reply_form == "chat":
            check_template(tokenizer, flag)
        self.thinking = require_known_thinking(tokenizer, flag)

    def form(self, rendering: Rendering = "auto") -> Literal["transcript", "chat"]:
        """Whether what is asked of the model is written as a transcript or goes through its chat template.

        auto: chat where it has a template other than the transcript one.
        """
        if rendering != "auto":
            return rendering
        own = self.reply_form == "chat" and f"{HUMAN} probe" not in render(
            self.tokenizer, [message("user", "probe")]
        )
        return "chat" if own else "transcript"

    @property
    def reply_form(self) -> Literal["transcript", "chat"]:
        """The same for a plain reply, which takes the template as it is: chat wherever there is one."""
        return "chat" if self.tokenizer.chat_template is not None else "transcript"

    def render(self, prompt: str | Conversation) -> str:
        """The exact text the model gets; a closing assistant turn is left open, to be continued. Raises
        UnfitRow.
        """
        if isinstance(prompt, str):
            check_text(self.tokenizer, prompt)
            return prompt
        require_template(self.tokenizer, self.flag)
        if prompt[-1]["role"] == "assistant":
            return render(self.tokenizer, prompt, continue_final_message=True, **self.template_kwargs)
        return render(self.tokenizer, prompt, add_generation_prompt=True, **self.template_kwargs)

    def show(self, prompt: str | Conversation) -> str:
        """`render` for a person who asked to see it: what cannot be rendered is a mistake in the input."""
        try:
            return self.render(prompt)
        except UnfitRow as error:
            raise UserError(
                f"{self.flag}: {error.reason}: {error.detail}", "such rows are rejected; begin with another"
            ) from None

    def encode(self, prompt: str | Conversation, suffix: str = "") -> list[int]:
        """Ids of the prompt and what follows it, encoded together. Raises UnfitRow."""
        text = self.render(prompt) + suffix
        return (
            encode_text(self.tokenizer, text)
            if isinstance(prompt, str)
            else encode_rendered(self.tokenizer, text)
        )

    def encode_all(
        self, prompts: list[tuple[str | Conversation, list[str]]]
    ) -> list[list[list[int]] | UnfitRow]:
        """Ids of each prompt with each of its suffixes, encoded together; or why there are none.

        Many texts at once, which tokenizers do faster.
        """
        rendered: list[str | UnfitRow] = []
        texts: dict[bool, list[str]] = {True: [], False: []}  # plain or rendered
        for prompt, suffixes in prompts:
            try:
                text = self.render(prompt)
            except UnfitRow as error:
                rendered.append(error)
                continue
            rendered.append(text)
            texts[isinstance(prompt, str)] += [text + suffix for suffix in suffixes]
        encoded = {plain: iter(self._encode_texts(group, plain)) for plain, group in texts.items()}
        return [
            text if isinstance(text, UnfitRow) else [next(encoded[isinstance(prompt, str)]) for _ in suffixes]
            for text, (prompt, suffixes) in zip(rendered, prompts, strict=True)
        ]

    def _encode_texts(self, texts: list[str], plain: bool) -> list[list[int]]:
        """As `encode_text` where they are plain, else as `encode_rendered`."""
        if not texts:
            return []
        rows = self._ids_of_texts(texts, add_special_tokens=plain)
        eos, word = self.tokenizer.eos_token_id, str(self.tokenizer.eos_token)
        if not plain:
            return rows
        return [
            row[:-1] if row and row[-1] == eos and not text.endswith(word) else row
            for row, text in zip(rows, texts, strict=True)
        ]

    def _ids_of_texts(self, texts: list[str], **settings: Any) -> list[list[int]]:
        """What the tokenizer gives, from the library below it where that gives the same: without the tokens'
        places in the text it takes two thirds of the time.
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

"""From requests to prompt ids, and from the ids that a model drew to the text that counts: whatever engine drew
them, a completion is cut at stop strings and at another turn's start, and thoughts are kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from cai_cli.engines.base import LENGTH, OVERLONG, STOP, UNFIT, Completion, Request
from cai_cli.errors import RunError
from cai_cli.models.chat import Renderer, encode_rendered, reply_header_ids, stop_ids, turn_start_ids
from cai_cli.models.templates import UnfitRow
from cai_cli.prompting.hygiene import OWN_HEADER


class CompletionReader:
    """What an engine needs of a tokenizer. `context`: tokens that prompt and continuation may have together;
    `generation_config`: the checkpoint's own, of which the ids that end a reply are kept.
    """

    def __init__(self, renderer: Renderer, context: int, generation_config: Any = None) -> None:
        tokenizer: Any = renderer.tokenizer
        self.renderer, self.tokenizer, self.context = renderer, tokenizer, context
        self.stop_ids = stop_ids(tokenizer, generation_config)
        self.thinking = renderer.thinking
        # Marks of thinking are found among the ids: as text they would be dropped with the special tokens.
        self.mark_ids = {
            ids[0] for mark in self.thinking.marks if len(ids := encode_rendered(tokenizer, mark)) == 1
        }
        self.turn_start_ids = turn_start_ids(tokenizer) - set(self.stop_ids) - self.mark_ids
        self.header = reply_header_ids(tokenizer)

    def encode(self, requests: list[Request]) -> tuple[dict[int, list[int]], dict[int, Completion]]:
        """By the number of the request: the ids of prompts that fit, and what came of the others."""
        prompts: dict[int, list[int]] = {}
        unfit: dict[int, Completion] = {}
        texts = [(request.prompt, [""]) for request in requests]
        for n, encoded in enumerate(self.renderer.encode_all(texts)):
            if isinstance(encoded, UnfitRow):
                unfit[n] = Completion("", UNFIT, [], [], fault=(encoded.reason, encoded.detail))
            elif len(encoded[0]) + requests[n].max_new_tokens > self.context:
                unfit[n] = Completion("", OVERLONG, encoded[0], [])
            else:
                prompts[n] = encoded[0]
        return prompts, unfit

    def read(
        self, request: Request, prompt: list[int], tokens: list[int], logprobs: list[float] | None
    ) -> Completion:
        """Text of the tokens drawn for a request, cut at its stop string or another turn's start."""
        reason = STOP if tokens and tokens[-1] in self.stop_ids else LENGTH
        spoken = tokens[:-1] if reason == STOP else tokens
        stop, fault = None, None
        if (
            other := next((n for n, index in enumerate(spoken) if index in self.turn_start_ids), None)
        ) is not None:
            stop = self.tokenizer.convert_ids_to_tokens(spoken[other])
            own = bool(self.header) and spoken[other : other + len(self.header)] == self.header
            if own and not isinstance(request.prompt, str):
                fault = (OWN_HEADER, f"it goes on with {self.tokenizer.decode(self.header)!r}")
            spoken = spoken[:other]
        text, thinking = self.decode(spoken), ""
        if not isinstance(request.prompt, str):
            thinking, text = self.thinking.split(text, self._opens_thinking(prompt))
        cuts = [(at, string) for string in request.stop if (at := text.find(string)) >= 0]
        if cuts:
            at, stop = min(cuts)
            text, reason = text[:at], STOP
        return Completion(text, reason, prompt, tokens, logprobs, stop, thinking, fault)

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens without special ones, but with the marks that a thought stands between."""
        groups = groupby(tokens, key=lambda index: index if index in self.mark_ids else None)
        return "".join(
            self.tokenizer.decode(list(group), skip_special_tokens=mark is None) for mark, group in groups
        )

    def _opens_thinking(self, prompt: list[int]) -> bool:
        """Whether the template has opened the thought already, so that the text starts inside it."""
        return self.tokenizer.decode(prompt[-8:]).rstrip().endswith(self.thinking.opening)


def check_numbers(numbers: Iterable[float], what: str) -> None:
    """Raise RunError where one of the numbers that an engine gave is not finite."""
    if (odd := next((number for number in numbers if not math.isfinite(number)), None)) is not None:
        raise RunError(f"{what} is {odd}", "compute in float32: --dtype float32")


def generation_config_of(path: str) -> Any:
    """The checkpoint's generation_config.json, if it has one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return None

"""The default engine: `generate` with keyed sampling in batches sorted by length, and option scores in one
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import torch
from transformers import GenerationConfig

from cai_cli.artifacts.manifest import device_facts
from cai_cli.compute.batches import left_pad, like_length
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.engines.base import (
    LENGTH,
    OVERLONG,
    STOP,
    UNFIT,
    Completion,
    EngineSettings,
    OptionRequest,
    Request,
)
from cai_cli.engines.decoding import KeyedDecoding, allocates_once, prefill
from cai_cli.engines.option_scores import OptionScorer
from cai_cli.engines.trials import even_length, shares_prefixes, takes_batches
from cai_cli.models.chat import Renderer, encode_rendered, reply_header_ids, stop_ids, turn_start_ids
from cai_cli.models.configs import context_length
from cai_cli.models.finite import check_outputs
from cai_cli.models.templates import UnfitRow, template_hash
from cai_cli.prompting.hygiene import OWN_HEADER


class TransformersEngine:
    """`settings.device` and `dtype` say how the model was loaded: it is taken as it is."""

    def __init__(
        self, model: Any, tokenizer: Any, settings: EngineSettings | None = None, flag: str = "--model"
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings or EngineSettings()
        self.renderer = Renderer(tokenizer, flag, self.settings.template_kwargs)
        self.stop_ids = stop_ids(tokenizer, getattr(model, "generation_config", None))
        self.thinking = self.renderer.thinking
        # Marks of thinking are found among the ids: as text they would be dropped with the special tokens.
        self.mark_ids = {
            ids[0] for mark in self.thinking.marks if len(ids := encode_rendered(tokenizer, mark)) == 1
        }
        self.turn_start_ids = turn_start_ids(tokenizer) - set(self.stop_ids) - self.mark_ids
        self.header = reply_header_ids(tokenizer)
        self.context = context_length(model.config)
        # The checkpoint's own sampling settings (top-p, penalties) would change the distribution: none is
        # kept.
        model.generation_config = GenerationConfig(
            eos_token_id=self.stop_ids,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps about the model as it was run."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        facts = {
            **device_facts(str(self.model.device), dtype),
            "chat_template": template_hash(self.tokenizer),
        }
        return {**facts, "shortcuts": shortcuts_of(self.model).facts()}

    # Generation

    def generate(
        self, requests: list[Request], told: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Sampled continuations in the order of the requests."""
        results: dict[int, Completion] = {}
        prompts: dict[int, list[int]] = {}
        for n, encoded in enumerate(
            self.renderer.encode_all([(request.prompt, [""]) for request in requests])
        ):
            if isinstance(encoded, UnfitRow):
                results[n] = Completion("", UNFIT, [], [], fault=(encoded.reason, encoded.detail))
            elif len(encoded[0]) + requests[n].max_new_tokens > self.context:
                results[n] = Completion("", OVERLONG, encoded[0], [])
            else:
                prompts[n] = encoded[0]
        fitting = list(prompts)
        for batch in self._batches([(len(prompts[n]), requests[n].max_new_tokens) for n in fitting]):
            numbers = [fitting[place] for place in batch]
            generated = self._generate_batch(
                [requests[n] for n in numbers], [prompts[n] for n in numbers], told
            )
            results.update(zip(numbers, generated, strict=True))
        return [results[n] for n in range(len(requests))]

    def _batches(self, lengths: list[tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of the rows of each pass, given the lengths of prompt and continuation: padded, or of
        prompts of one length.
        """
        if not lengths:
            return
        even = even_length(self.model)
        wholes = [prompt + new for prompt, new in lengths]
        padded = [n for n, whole in enumerate(wholes) if whole <= even]
        for places in like_length([wholes[n] for n in padded], self.settings.batch_size):
            yield [padded[place] for place in places]
        if apart := [n for n, whole in enumerate(wholes) if whole > even]:
            size = self.settings.batch_size if takes_batches(self.model) else 1
            most = max(lengths[n][1] for n in apart)
            for places in like_length([lengths[n][0] for n in apart], size, most, even=0):
                yield [apart[place] for place in places]

    @torch.inference_mode()
    def _generate_batch(
        self, requests: list[Request], prompts: list[list[int]], told: Callable[[int], None] | None = None
    ) -> list[Completion]:
        model, pad = self.model, int(self.tokenizer.pad_token_id)
        ours = allocates_once(model) and (len(prompts) > 1 or even_length(model) > 0 or takes_batches(model))
        decoding = KeyedDecoding(
            requests, self.tokenizer, self.stop_ids, self.settings.temperature, model.device, ours, told
        )
        if max(map(len, prompts)) + decoding.longest <= even_length(model) and shares_prefixes(model):
            inputs = prefill(model, prompts, pad, decoding.longest)
        else:
            inputs = dict(
                zip(("input_ids", "attention_mask"), left_pad(prompts, pad, model.device), strict=True)
            )
        model.generate(**inputs, max_new_tokens=decoding.longest, do_sample=False, custom_generate=decoding)
        if self.settings.odd_numbers_end_it:
            for logprobs in decoding.logprobs:
                check_outputs(self.model, logprobs, "a token's log-probability")
        return [
            self._completion(*row)
            for row in zip(requests, prompts, decoding.tokens, decoding.logprobs, strict=True)
        ]

    def _completion(
        self, request: Request, prompt: list[int], tokens: list[int], logprobs: list[float]
    ) -> Completion:
        """Text of the tokens drawn for a request, cut at its stop string or another turn's start."""
        reason = STOP if tokens[-1] in self.stop_ids else LENGTH
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
        text, thinking = self._decode(spoken), ""
        if not isinstance(request.prompt, str):
            thinking, text = self.thinking.split(text, self._opens_thinking(prompt))
        cuts = [(at, string) for string in request.stop if (at := text.find(string)) >= 0]
        if cuts:
            at, stop = min(cuts)
            text, reason = text[:at], STOP
        return Completion(text, reason, prompt, tokens, logprobs, stop, thinking, fault)

    def _decode(self, tokens: list[int]) -> str:
        """The text of tokens without special ones, but with the marks that a thought stands between."""
        groups = groupby(tokens, key=lambda index: index if index in self.mark_ids else None)
        return "".join(
            self.tokenizer.decode(list(group), skip_special_tokens=mark is None) for mark, group in groups
        )

    def _opens_thinking(self, prompt: list[int]) -> bool:
        """Whether the template has opened the thought already, so that the text starts inside it."""
        return self.tokenizer.decode(prompt[-8:]).rstrip().endswith(self.thinking.opening)

    # Option scores

    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """Log-probabilities of the options of each request, prompt and option encoded together."""
        scorer = OptionScorer(
            self.model, self.renderer, self.context, self.settings.batch_size, self.settings.prefix_cache
        )
        found = scorer.score(requests)
        for scores in found:
            check_outputs(
                self.model, scores if isinstance(scores, list) else (), "an option's log-probability"
            )
        return found

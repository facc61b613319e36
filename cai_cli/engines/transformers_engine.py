"""The default engine: `generate` with keyed sampling in batches sorted by length, and option scores in one
forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from transformers import GenerationConfig

from cai_cli.artifacts.manifest import device_facts
from cai_cli.compute.batches import left_pad, like_length
from cai_cli.compute.grouped_attention import grouped_queries
from cai_cli.compute.products import fast_products
from cai_cli.compute.shortcuts import shortcuts_of
from cai_cli.engines.base import (
    Completion,
    EngineSettings,
    OptionRequest,
    Request,
)
from cai_cli.engines.caches import allocates_once
from cai_cli.engines.completions import CompletionReader
from cai_cli.engines.decoding import KeyedDecoding
from cai_cli.engines.memory import TokenBudget
from cai_cli.engines.option_scores import OptionScorer
from cai_cli.engines.prefill import prefill, shared_start
from cai_cli.engines.trials import (
    even_length,
    groups_queries,
    keeps_starts,
    shares_prefixes,
    takes_batches,
)
from cai_cli.errors import RunError
from cai_cli.models.chat import Renderer
from cai_cli.models.configs import context_length
from cai_cli.models.finite import check_outputs
from cai_cli.models.templates import UnfitRow, template_hash

LEAST_KEPT = 64  # tokens of a start; attention to a shorter one is faster in one piece


class TransformersEngine:
    """`settings.device` and `dtype` say how the model was loaded: it is taken as it is."""

    rows_at_once = 1

    def __init__(
        self, model: Any, tokenizer: Any, settings: EngineSettings | None = None, flag: str = "--model"
    ) -> None:
        self.model = model
        self.flag = flag
        self.tokenizer = tokenizer
        self.budget = TokenBudget(model, flag)
        self.settings = settings or EngineSettings()
        self.renderer = Renderer(tokenizer, flag, self.settings.template_kwargs)
        self.reader = CompletionReader(
            self.renderer, context_length(model.config), getattr(model, "generation_config", None)
        )
        # The checkpoint's own sampling settings (top-p, penalties) would change the distribution: none is
        # kept.
        model.generation_config = GenerationConfig(
            eos_token_id=self.reader.stop_ids,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
        )

    def follow(self, model: Any) -> None:
        """Nothing to do where it is the same object."""
        assert model is self.model

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
        prompts, results = self.reader.encode(requests)
        fitting = list(prompts)
        lengths = [(len(prompts[n]), requests[n].max_new_tokens) for n in fitting]
        for batch in self._batches(lengths, self._kept_once(list(prompts.values()), lengths)):
            numbers = [fitting[place] for place in batch]
            generated = self._within_memory(
                [requests[n] for n in numbers], [prompts[n] for n in numbers], told
            )
            results.update(zip(numbers, generated, strict=True))
        return [results[n] for n in range(len(requests))]

    def _kept_once(self, prompts: list[list[int]], lengths: list[tuple[int, int]]) -> int:
        """How many tokens that all prompts start with are in the memory once, not with each row."""
        if len(prompts) < 2 or max(map(sum, lengths)) > even_length(self.model):
            return 0
        shared = shared_start(prompts)
        fits = shared >= LEAST_KEPT and shares_prefixes(self.model) and keeps_starts(self.model)
        return shared if fits else 0

    def _batches(self, lengths: list[tuple[int, int]], kept: int) -> Iterator[list[int]]:
        """Indices of the rows of each pass, given the lengths of prompt and continuation: padded, or of
        prompts of one length. `kept`: tokens that are in the memory once.
        """
        if not lengths:
            return
        even = even_length(self.model)
        wholes = [prompt + new for prompt, new in lengths]
        padded = [n for n, whole in enumerate(wholes) if whole <= even]
        for places in like_length(
            [wholes[n] - kept for n in padded], self.settings.batch_size, most_tokens=self.budget.tokens
        ):
            yield [padded[place] for place in places]
        if apart := [n for n, whole in enumerate(wholes) if whole > even]:
            size = self.settings.batch_size if takes_batches(self.model) else 1
            most = max(lengths[n][1] for n in apart)
            for places in like_length([lengths[n][0] for n in apart], size, most, even=0):
                yield [apart[place] for place in places]

    def _within_memory(
        self, requests: list[Request], prompts: list[list[int]], told: Callable[[int], None] | None
    ) -> list[Completion]:
        """A batch in as many parts as the device's memory asks for. Raises RunError where one row does not fit."""
        lengths = [(len(ids), request.max_new_tokens) for ids, request in zip(prompts, requests, strict=True)]
        kept = self._kept_once(prompts, lengths)
        longest = max(map(sum, lengths)) - kept
        if (size := max(1, (self.budget.tokens - kept) // longest)) < len(requests):
            first = self._within_memory(requests[:size], prompts[:size], told)
            return first + self._within_memory(requests[size:], prompts[size:], told)
        heard = Heard(told)
        try:
            return self._generate_batch(requests, prompts, kept > 0, heard)
        except torch.OutOfMemoryError:
            self._make_do(len(requests), longest, kept)
        return self._within_memory(requests, prompts, heard.again())

    def _make_do(self, rows: int, length: int, kept: int = 0) -> None:
        """After a pass of so many rows, of so many tokens each and `kept` for all, that did not fit."""
        if rows <= 1:
            told = f"{self.flag}: out of memory with one row of {length + kept} tokens"
            raise RunError(
                told,
                "--dtype bfloat16, a shorter --max-new-tokens, or --engine vllm with --tensor-parallel-size",
            )
        self.budget.halve(rows * length + kept)

    @torch.inference_mode()
    def _generate_batch(
        self, requests: list[Request], prompts: list[list[int]], once: bool, told: Callable[[int], None]
    ) -> list[Completion]:
        """`once`: whether the start of all rows is kept once."""
        model, pad = self.model, int(self.tokenizer.pad_token_id)
        ours = allocates_once(model) and (len(prompts) > 1 or even_length(model) > 0 or takes_batches(model))
        decoding = KeyedDecoding(
            requests,
            self.tokenizer,
            self.reader.stop_ids,
            self.settings.temperature,
            model.device,
            ours,
            told,
        )
        shares = max(map(len, prompts)) + decoding.longest <= even_length(model) and shares_prefixes(model)
        with fast_products(model), grouped_queries(model) if groups_queries(model) or once else nullcontext():
            if shares:
                inputs = prefill(model, prompts, pad, decoding.longest, once, self.budget.tokens)
            else:
                inputs = dict(
                    zip(("input_ids", "attention_mask"), left_pad(prompts, pad, model.device), strict=True)
                )
            model.generate(
                **inputs, max_new_tokens=decoding.longest, do_sample=False, custom_generate=decoding
            )
        if self.settings.odd_numbers_end_it:
            for logprobs in decoding.logprobs:
                check_outputs(self.model, logprobs, "a token's log-probability")
        return [
            self.reader.read(*row)
            for row in zip(requests, prompts, decoding.tokens, decoding.logprobs, strict=True)
        ]

    # Option scores

    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """Log-probabilities of the options of each request, prompt and option encoded together."""
        found = self._scores(requests)
        for scores in found:
            check_outputs(
                self.model, scores if isinstance(scores, list) else (), "an option's log-probability"
            )
        return found

    def _scores(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        scorer = OptionScorer(
            self.model,
            self.renderer,
            self.reader.context,
            self.settings.batch_size,
            self.settings.prefix_cache,
            self.budget.tokens,
        )
        try:
            with fast_products(self.model):
                return scorer.score(requests)
        except torch.OutOfMemoryError:
            self._make_do(*scorer.under_way)
        return self._scores(requests)


class Heard:
    """How many rows a pass has told of, so that another try does not tell of them again."""

    def __init__(self, told: Callable[[int], None] | None) -> None:
        self.told = told or (lambda count: None)
        self.count = 0

    def __call__(self, count: int) -> None:
        self.count += count
        self.told(count)

    def again(self) -> Callable[[int], None]:
        left = self.count

        def told(count: int) -> None:
            nonlocal left
            known = min(left, count)
            left -= known
            if count > known:
                self.told(count - known)

        return told

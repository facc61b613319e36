"""The default engine: `generate` with keyed sampling in batches sorted by length, and option scores in one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from cai_cli.engines.base import LENGTH, OVERLONG, STOP, Completion, OptionRequest, Request
from cai_cli.engines.sampling import KeyedSampler, StopStrings
from cai_cli.manifest import device_facts
from cai_cli.models.chat import Renderer, stop_ids, template_hash, turn_start_ids
from cai_cli.models.load import context_length, load_lm, load_tokenizer
from cai_cli.options import GenerationOptions, template_kwargs
from cai_cli.thinking import OPEN, split_thinking

BATCH_TOKENS = 1 << 15  # Rows times length of one forward pass.


class TransformersEngine:
    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        temperature: float = 1.0,
        batch_size: int = 64,
        flag: str = "--model",
        template_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.batch_size = batch_size
        self.renderer = Renderer(tokenizer, flag, template_kwargs)
        self.stop_ids = stop_ids(tokenizer, getattr(model, "generation_config", None))
        self.turn_start_ids = turn_start_ids(tokenizer) - set(self.stop_ids)
        self.context = context_length(model.config)
        # The checkpoint's own sampling settings (top-p, penalties) would change the distribution: none is kept.
        model.generation_config = GenerationConfig(
            eos_token_id=self.stop_ids, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id
        )

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps about the model as it was run."""
        dtype = str(self.model.dtype).removeprefix("torch.")
        return {**device_facts(str(self.model.device), dtype), "chat_template": template_hash(self.tokenizer)}

    # Generation

    def generate(self, requests: list[Request]) -> list[Completion]:
        """Sampled continuations in the order of the requests."""
        prompts = [self.renderer.encode(request.prompt) for request in requests]
        results: dict[int, Completion] = {}
        fitting = []
        for n, request in enumerate(requests):
            if len(prompts[n]) + request.max_new_tokens > self.context:
                results[n] = Completion("", OVERLONG, prompts[n], [])
            else:
                fitting.append(n)
        lengths = [len(prompt) + request.max_new_tokens for prompt, request in zip(prompts, requests, strict=True)]
        for batch in self._batches(fitting, lengths):
            generated = self._generate_batch([requests[n] for n in batch], [prompts[n] for n in batch])
            results.update(zip(batch, generated, strict=True))
        return [results[n] for n in range(len(requests))]

    def _batches(self, indices: list[int], lengths: list[int]) -> Iterator[list[int]]:
        """Batches of like length, longest first: little padding, and memory runs out at once or never.

        At most `batch_size` rows, fewer where rows are long, since attention's memory grows with rows times length squared.
        """
        batch: list[int] = []
        for n in sorted(indices, key=lambda n: -lengths[n]):
            if batch and (len(batch) == self.batch_size or (len(batch) + 1) * lengths[batch[0]] > BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch

    @torch.inference_mode()
    def _generate_batch(self, requests: list[Request], prompts: list[list[int]]) -> list[Completion]:
        ids, mask = left_pad(prompts, self.tokenizer.pad_token_id, self.model.device)
        longest = max(request.max_new_tokens for request in requests)
        sampler = KeyedSampler([request.key for request in requests], longest, self.temperature, self.model.device)
        stops = StopStrings(self.tokenizer, [request.stop for request in requests], ids.size(1))
        criteria = StoppingCriteriaList([stops] if any(request.stop for request in requests) else [])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=longest,
            do_sample=False,
            logits_processor=LogitsProcessorList([sampler]),
            stopping_criteria=criteria,
        )
        # A row that met its stop string is padded while others go on.
        tails = [tail[:end] for tail, end in zip(output[:, ids.size(1) :].tolist(), stops.ends, strict=True)]
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        return [self._completion(*row) for row in zip(requests, prompts, tails, logprobs, strict=True)]

    def _completion(self, request: Request, prompt: list[int], tail: list[int], logprobs: list[float]) -> Completion:
        """Cut a generated row at its first stop token, its stop string, another turn's start, or its length limit."""
        tail = tail[: request.max_new_tokens]
        end = next((n for n, index in enumerate(tail) if index in self.stop_ids), None)
        reason = LENGTH if end is None else STOP
        tokens = tail if end is None else tail[: end + 1]
        spoken = tokens if end is None else tokens[:-1]
        stop = None
        if (other := next((n for n, index in enumerate(spoken) if index in self.turn_start_ids), None)) is not None:
            stop, spoken = self.tokenizer.convert_ids_to_tokens(spoken[other]), spoken[:other]
        text, thinking = self.tokenizer.decode(spoken, skip_special_tokens=True), ""
        if not isinstance(request.prompt, str):
            thinking, text = split_thinking(text, self._opens_thinking(prompt))
        cuts = [(at, string) for string in request.stop if (at := text.find(string)) >= 0]
        if cuts:
            at, stop = min(cuts)
            text, reason = text[:at], STOP
        return Completion(text, reason, prompt, tokens, logprobs[: len(tokens)], stop, thinking)

    def _opens_thinking(self, prompt: list[int]) -> bool:
        """Whether the template has opened the thought already, so that the text starts inside it."""
        return self.tokenizer.decode(prompt[-8:]).rstrip().endswith(OPEN)

    # Option scores

    def score(self, requests: list[OptionRequest]) -> list[list[float] | None]:
        """Log-probabilities of the options of each request, prompt and option encoded together."""
        encoded = [[self.renderer.encode(request.prompt, option) for option in request.options] for request in requests]
        shared = [shared_prefix(rows) for rows in encoded]
        scored_from = [
            shared_prefix([self.renderer.encode(request.prompt), *rows]) for request, rows in zip(requests, encoded, strict=True)
        ]
        results: dict[int, list[float] | None] = {n: None for n, rows in enumerate(encoded) if max(map(len, rows)) > self.context}
        for batch in self._batches([n for n in range(len(requests)) if n not in results], shared):
            scores = self._score_batch([encoded[n] for n in batch], [shared[n] for n in batch], [scored_from[n] for n in batch])
            results.update(zip(batch, scores, strict=True))
        return [results[n] for n in range(len(requests))]

    @torch.inference_mode()
    def _score_batch(self, rows: list[list[list[int]]], shared: list[int], scored_from: list[int]) -> list[list[float]]:
        """One forward pass over what a request's options share, a short one over their tails where they have any.

        The first token in which options differ is read off the shared part's last logits, so options of one token
        (the usual ` (A)`) need no second pass.
        """
        prefixes = [options[0][:length] for options, length in zip(rows, shared, strict=True)]
        ids, mask = left_pad(prefixes, self.tokenizer.pad_token_id, self.model.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        tails = [[option[length:] for option in options] for options, length in zip(rows, shared, strict=True)]
        deepest = max(len(tail) for options in tails for tail in options)
        # Tokens of the option that all options share are scored from the prefix pass too.
        keep = max(length - start for length, start in zip(shared, scored_from, strict=True)) + 1
        cache = DynamicCache(config=self.model.config) if deepest > 1 else None
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        )
        logprobs = torch.log_softmax(output.logits.float(), dim=-1)
        scores = []
        for n, options in enumerate(tails):
            common = 0.0
            for offset, index in enumerate(prefixes[n][scored_from[n] :]):
                position = keep - 1 - (shared[n] - scored_from[n]) + offset
                common += logprobs[n, position, index].item()
            scores.append([common + (logprobs[n, -1, tail[0]].item() if tail else 0.0) for tail in options])
        if cache is not None:
            self._add_tails(scores, tails, output.past_key_values, mask)
        return scores

    def _add_tails(self, scores: list[list[float]], tails: list[list[list[int]]], cache: Any, mask: torch.Tensor) -> None:
        """Add the log-probabilities of each tail's second and later tokens, going on from the shared part's cache."""
        flat = [tail for options in tails for tail in options]
        owners = [(n, place) for n, options in enumerate(tails) for place in range(len(options))]
        rows = torch.tensor([n for n, _ in owners], device=mask.device)
        cache.batch_select_indices(rows)
        width = max(map(len, flat))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([tail + [pad] * (width - len(tail)) for tail in flat], device=mask.device)
        tail_mask = torch.tensor([[1] * len(tail) + [0] * (width - len(tail)) for tail in flat], device=mask.device)
        whole = torch.cat([mask[rows], tail_mask], dim=-1)
        positions = (whole.cumsum(-1) - 1).clamp(min=0)[:, -width:]
        output = self.model(input_ids=ids, attention_mask=whole, position_ids=positions, past_key_values=cache)
        logprobs = torch.log_softmax(output.logits.float(), dim=-1)
        for row, ((n, place), tail) in enumerate(zip(owners, flat, strict=True)):
            scores[n][place] += sum(logprobs[row, k, index].item() for k, index in enumerate(tail[1:]))


def shared_prefix(rows: list[list[int]]) -> int:
    """Number of leading ids that all rows have in common."""
    length = min(map(len, rows))
    return next((n for n in range(length) if any(row[n] != rows[0][n] for row in rows)), length)


def left_pad(rows: list[list[int]], pad: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and mask, padded on the left so that every row ends at the same place."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask


def open_engine(path: str, options: GenerationOptions, flag: str = "--model") -> TransformersEngine:
    """Load a model and its tokenizer as an engine."""
    tokenizer = load_tokenizer(path, flag)
    model = load_lm(path, options.device, options.dtype, flag, tokenizer)
    kwargs = template_kwargs(options.chat_template_kwargs)
    return TransformersEngine(model, tokenizer, options.temperature, options.batch_size, flag, kwargs)

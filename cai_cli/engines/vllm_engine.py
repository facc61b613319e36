"""The vLLM engine, in this process: our token ids in, its token ids and log-probabilities out.

    pip install 'cai-cli[vllm]'
    cai sample --engine vllm --model MODEL --prompts prompts.jsonl --out samples.jsonl

Prompts are rendered and encoded by us and texts are read from the ids by us, so stop strings, leaked turns and
thoughts are treated as with any engine. Each request is seeded by its key: a text does not depend on the
batch it shares, but for rounding. It is another text than the transformers engine's, whose draws are of another kind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from cai_cli.compute.prefix_tree import OptionTokens
from cai_cli.engines.base import Completion, EngineSettings, OptionRequest, Request
from cai_cli.engines.completions import CompletionReader, check_numbers, generation_config_of
from cai_cli.engines.option_tokens import encode_options, read_at_once
from cai_cli.errors import UserError, first_line
from cai_cli.models.chat import Renderer
from cai_cli.models.configs import NO_CODE, context_length, load_config
from cai_cli.models.devices import pick_device, pick_dtype
from cai_cli.models.merging import whole_weights
from cai_cli.models.templates import UnfitRow
from cai_cli.models.tokenizers import load_tokenizer

LEAST, MOST = 0.01, 2.0  # temperatures
SEED_BITS = (1 << 63) - 1  # of a key: what vLLM takes as a seed
# One process, so that Ctrl-C and weights reach the model. No line of its own on stderr but warnings.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """`model` is None: the weights are vLLM's."""

    model = None
    rows_at_once = 1

    def __init__(self, path: str, settings: EngineSettings, flag: str = "--model") -> None:
        self.settings, self.path, self.flag = settings, path, flag
        if settings.temperature and not LEAST <= settings.temperature <= MOST:
            raise UserError(
                f"--temperature {settings.temperature:g}: vLLM samples at {LEAST:g} to {MOST:g}, or at 0",
                "choose one there, or --engine transformers",
            )
        vllm = import_vllm()
        self.vllm = vllm
        tokenizer = load_tokenizer(path, flag)
        self.renderer = Renderer(tokenizer, flag, settings.template_kwargs)
        place = pick_device(settings.device)
        computes_on = import_module("vllm.platforms").current_platform.device_type
        if settings.device not in ("auto", place.type) or place.type != computes_on:
            raise UserError(
                f"--device {settings.device}: vLLM computes on the first {computes_on}",
                "leave it at auto; CUDA_VISIBLE_DEVICES says which GPUs there are",
            )
        config = load_config(path, flag)
        dtype = pick_dtype(settings.dtype, place)
        # vLLM's own "auto" makes float16 of float32
        self.dtype = str(config.dtype or "float32" if dtype == "auto" else dtype).removeprefix("torch.")
        try:
            self.llm = vllm.LLM(
                model=path,
                dtype=self.dtype,
                max_model_len=-1,  # as long as fits the memory
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                enforce_eager=place.type == "cpu",  # compiling takes minutes there and wins nothing
                # Winds a seed back after half a prompt, which no generator on a CPU can (0.32)
                enable_chunked_prefill=place.type != "cpu",
                enable_prefix_caching=settings.prefix_cache,
                logprobs_mode="processed_logprobs",  # under the temperature, as `Completion` has them
                use_tqdm_on_load=False,
                generation_config="vllm",  # not the checkpoint's own top-p and penalties
                **NO_CODE,
            )
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(
                f"{flag} {path}: vLLM cannot load it: {first_line(error)}",
                "less memory: --gpu-memory-utilization, --tensor-parallel-size; or --engine transformers",
            ) from None
        context = min(self.llm.llm_engine.model_config.max_model_len, context_length(config))
        self.reader = CompletionReader(self.renderer, context, generation_config_of(path))
        self.place = place

    def follow(self, model: Any) -> None:
        """Take over the model's weights, adapters merged."""
        with warnings_told():  # of weights that found no place
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole_weights(model)})
        self.llm.reset_prefix_cache()  # keys and values of the weights before

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps about the model as it was run."""
        from cai_cli.artifacts.manifest import device_facts
        from cai_cli.models.templates import template_hash

        facts = device_facts(str(self.place), self.dtype)
        facts["chat_template"] = template_hash(self.renderer.tokenizer)
        parallel = self.settings.tensor_parallel_size
        return {
            **facts,
            "engine": {"name": "vllm", "version": self.vllm.__version__, "tensor_parallel_size": parallel},
        }

    # Generation

    def generate(
        self, requests: list[Request], told: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Sampled continuations in the order of the requests."""
        prompts, results = self.reader.encode(requests)
        drawn = self._run(list(prompts.values()), [self._sampling(requests[n]) for n in prompts], told)
        for n, output in zip(prompts, drawn, strict=True):
            ids = list(output.outputs[0].token_ids)
            logprobs = [
                row[index].logprob for row, index in zip(output.outputs[0].logprobs, ids, strict=True)
            ]
            if self.settings.odd_numbers_end_it:
                check_numbers(logprobs, f"{self.flag} {self.path}: a token's log-probability")
            results[n] = self.reader.read(requests[n], prompts[n], ids, logprobs)
        return [results[n] for n in range(len(requests))]

    def _sampling(self, request: Request) -> Any:
        return self.vllm.SamplingParams(
            temperature=self.settings.temperature,
            seed=request.key & SEED_BITS,
            max_tokens=request.max_new_tokens,
            stop=list(request.stop),
            stop_token_ids=self.reader.stop_ids,
            logprobs=0,
            output_kind=self.final_only,
        )

    @property
    def final_only(self) -> Any:
        return import_module("vllm.sampling_params").RequestOutputKind.FINAL_ONLY

    def _run(
        self, prompts: list[list[int]], sampling: list[Any], told: Callable[[int], None] | None = None
    ) -> Any:
        if not prompts:
            return []
        inputs = [{"prompt_token_ids": ids} for ids in prompts]

        def bar(rows: Any = None, **_: Any) -> Any:  # what wraps rows on their way in is none of ours
            return Told(told) if rows is None and told else rows

        return self.llm.generate(inputs, sampling, use_tqdm=bar if told else False)

    # Option scores

    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """Log-probabilities of the options of each request, prompt and option encoded together.

        Options of one token after a prompt they share are read in one pass that uses the cache of what came
        before; any others token by token from the log-probabilities of the whole text, which vLLM computes
        without its cache.
        """
        encoded = encode_options(self.renderer, self.reader.context - 1, requests)  # and one drawn
        results: list[list[float] | UnfitRow] = [row if isinstance(row, UnfitRow) else [] for row in encoded]
        prompts: list[list[int]] = []
        sampling: list[Any] = []
        takers: list[tuple[int, OptionTokens | list[int]]] = []
        for n, options in enumerate(encoded):
            if isinstance(options, UnfitRow):
                continue
            if read_at_once(options):
                wanted = [option.ids[-1] for option in options]
                prompts.append(options[0].ids[:-1])
                sampling.append(self._one_token(logprob_token_ids=wanted, logprobs=len(wanted)))
                takers.append((n, wanted))
                continue
            for option in options:
                prompts.append(option.ids)
                sampling.append(self._one_token(prompt_logprobs=0))
                takers.append((n, option))
        for (n, taker), output in zip(takers, self._run(prompts, sampling), strict=True):
            scores = results[n]
            assert isinstance(scores, list)
            if isinstance(taker, OptionTokens):
                rows = zip(taker.ids[taker.start :], output.prompt_logprobs[taker.start :], strict=True)
                scores.append(sum(row[index].logprob for index, row in rows))
            else:
                found = output.outputs[0].logprobs[0]
                scores += [found[index].logprob for index in taker]
        for scores in results:
            if isinstance(scores, list):
                check_numbers(scores, f"{self.flag} {self.path}: an option's log-probability")
        return results

    def _one_token(self, **settings: Any) -> Any:
        """A pass over a prompt: what follows it is not used."""
        return self.vllm.SamplingParams(
            temperature=1.0, seed=0, max_tokens=1, detokenize=False, output_kind=self.final_only, **settings
        )


class Told:
    """What vLLM takes for a progress bar: hears of each request that has ended."""

    def __init__(self, told: Callable[[int], None]) -> None:
        self.told = told
        self.n, self.format_dict, self.postfix = 0, {"elapsed": 1.0}, ""

    def update(self, count: int = 1) -> None:
        self.n += count
        self.told(count)

    def refresh(self) -> None: ...

    def close(self) -> None: ...


@contextmanager
def warnings_told() -> Iterator[None]:
    logger = logging.getLogger("vllm")
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(logging.ERROR)


def import_vllm() -> Any:
    """The package. Raises UserError where it is not installed, or cannot be loaded."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import vllm
    except ImportError as error:
        missing = getattr(error, "name", "") == "vllm"
        told = "vLLM is not installed" if missing else f"vLLM cannot be imported: {first_line(error)}"
        raise UserError(f"--engine vllm: {told}", "pip install 'cai-cli[vllm]'") from None
    logging.getLogger("vllm").setLevel(logging.ERROR)
    return vllm

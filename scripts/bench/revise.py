"""Chains of critique and revision per second against a loop of `generate`, in one run: `python
scripts/bench/revise.py`.

The loop: transformers' own `generate` for one prompt at a time, sampled at temperature 1 and ended by the
end-of-turn token or our stop strings (a criterion that looks at the decoded tail, since transformers' own is
slower), nothing checked. Ours: what `cai revise` does once its model is loaded, up to the rows in memory
(`revise_chunk` on chunks of batches), with its checks and redraws; segments that were drawn and chains that
were kept are counted. Both in float32 on the micro-world's helpful-only checkpoint, or on --model, with the
same prompts, principles, rounds and threads. The loop takes the first few of the prompts, since it is slow;
rates are compared. Each way runs a few prompts unmeasured first.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from cai_cli.artifacts.chunks import chunks
from cai_cli.console.groups import build
from cai_cli.engines.base import EngineSettings
from cai_cli.engines.transformers_engine import TransformersEngine
from cai_cli.microworld import checkpoint
from cai_cli.microworld.files import write_world
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.hygiene import EMPTY, ROLE_CONFUSED, TRUNCATED, UNREVISED
from cai_cli.prompting.principles import Constitution
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.records import Prompt
from cai_cli.stages.revise import CHUNK_BATCHES, Chain, Options, Texts, revise_chunk

REDRAWN = (EMPTY, TRUNCATED, ROLE_CONFUSED, UNREVISED)


class StopStrings(StoppingCriteria):
    """Ends a single row once its decoded tail holds a stop string."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...], prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.stops = stops
        self.prompt_length = prompt_length
        self.window = max(map(len, stops), default=0) + 1

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        start = max(self.prompt_length, input_ids.size(1) - self.window)
        tail = self.tokenizer.decode(input_ids[0, start:], skip_special_tokens=True)
        return torch.tensor([any(stop in tail for stop in self.stops)])  # type: ignore[return-value]


def loop(
    model: Any, texts: Texts, options: Options, constitution: Constitution, prompts: list[Prompt]
) -> tuple[int, int, int]:
    """Every segment by a call of its own. Returns the numbers of chains, segments and tokens."""
    tokenizer = load_tokenizer(options.model)
    sampling = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=options.generation.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    segments = tokens = 0

    def generate(prompt: Any) -> str:
        nonlocal segments, tokens
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        criteria = StoppingCriteriaList([StopStrings(tokenizer, texts.stops, ids.size(1))])
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=sampling,
                stopping_criteria=criteria,
            )
        segments, tokens = segments + 1, tokens + output.size(1) - ids.size(1)
        text = str(tokenizer.decode(output[0, ids.size(1) :], skip_special_tokens=True))
        return min((text.split(stop)[0] for stop in texts.stops), key=len).strip()

    for prompt in prompts:
        chain = Chain(f"{prompt.id}/0", prompt)
        chain.response = generate(texts.draft(chain))
        for number in range(1, options.rounds + 1):
            chain.principle = constitution.draw(options.output.seed, "principle", chain.id, number)
            chain.critique = generate(texts.critique(chain))
            chain.response = generate(texts.revision(chain))
    return len(prompts), segments, tokens


def ours(
    engine: TransformersEngine,
    texts: Texts,
    options: Options,
    constitution: Constitution,
    prompts: list[Prompt],
) -> tuple[int, int, int]:
    """The stage's own way. Returns the numbers of chains kept, of segments drawn and of tokens."""
    chains = [Chain(f"{prompt.id}/0", prompt) for prompt in prompts]
    for chunk in chunks(chains, CHUNK_BATCHES * options.generation.batch_size):
        revise_chunk(engine, texts, options, constitution, chunk)
    kept = sum(chain.rejected is None for chain in chains)
    redrawn = sum(rule in REDRAWN for chain in chains for rule, _ in chain.events)
    segments = sum(len(chain.thinking) for chain in chains) + redrawn
    return kept, segments, sum(chain.tokens for chain in chains)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(checkpoint("helpful-only")))
    parser.add_argument("--prompts", help="default: the micro-world's harmful prompts for --seed")
    parser.add_argument("--chains", type=int, default=512)
    parser.add_argument("--loop-chains", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_world(Path(folder), arguments.seed)
        options = build(
            Options,
            out=Path(folder) / "unused.jsonl",
            model=arguments.model,
            prompts=[arguments.prompts or str(Path(folder) / "harmful-sft.jsonl")],
            constitution=str(Path(folder) / "constitution.yaml"),
            few_shot="none",
            rendering="transcript",
            rounds=arguments.rounds,
            max_new_tokens=arguments.max_new_tokens,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
        )
        prompts = read_prompts(options.prompts, arguments.chains)
        constitution = load_constitution(options.constitution, needs=("critique", "revision"))
    tokenizer = load_tokenizer(options.model)
    model = load_lm(options.model, "cpu", "float32", tokenizer=tokenizer)
    engine = TransformersEngine(model, tokenizer, EngineSettings.of(options))
    texts = Texts(options, engine.renderer)
    ways = {
        "loop of generate": (loop, model, prompts[: arguments.loop_chains]),
        "cai revise": (ours, engine, prompts),
    }
    print(
        f"{arguments.rounds} rounds, {torch.get_num_threads()} threads, batches of {options.generation.batch_size}, float32"
    )
    rates: dict[str, tuple[float, float]] = {}
    for name, (way, runner, sample) in ways.items():
        way(runner, texts, options, constitution, sample[:2])
        start = time.perf_counter()
        chains, segments, tokens = way(runner, texts, options, constitution, sample)
        seconds = time.perf_counter() - start
        rates[name] = segments / seconds, chains / seconds
        print(
            f"{name:18} {len(sample):5} chains in {seconds:6.1f} s   {segments / seconds:7.1f} segments/s"
            f"   {chains / seconds:6.2f} chains/s   {tokens / seconds:7.0f} tokens/s   {tokens / segments:5.1f} tokens a segment"
        )
    by_segment, by_chain = (mine / plain for plain, mine in zip(*rates.values(), strict=True))
    print(f"ratio: {by_segment:.1f}x segments/s, {by_chain:.1f}x chains/s")


if __name__ == "__main__":
    main()

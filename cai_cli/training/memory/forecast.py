"""What a trainer's launch will hold in one of its processes, from its options and the lengths of its rows.

Of `sft` and the preference models one model learns. Of `ppo` there are four: while it samples there is a cache, while
it learns the activations of one or two of them, and all weights and optimisers are there all the time.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cai_cli.compute.batches import BATCH_TOKENS, CPU_PREFILL_TOKENS
from cai_cli.compute.packed_attention import SHORT
from cai_cli.models.devices import training_dtype
from cai_cli.training.memory.formulas import (
    FLOAT,
    HALF,
    Learning,
    Pass,
    Way,
    cache_bytes,
    forward_bytes,
    kept_bytes,
    learning,
    optimiser_bytes,
    standing_bytes,
    weight_bytes,
)
from cai_cli.training.memory.shape import Shape, shape_of
from cai_cli.training.ppo.episodes import minibatches

if TYPE_CHECKING:
    from cai_cli.console.options import AdapterOptions, DeviceOptions
    from cai_cli.training.ppo.settings import Options as PPO
    from cai_cli.training.preference.settings import PairwiseOptions
    from cai_cli.training.sft.settings import Options as SFT

# Tokens of a batch that is sampled on a GPU: as many as fit, and what it makes do with (`engines/memory.py`).
MOST, LEAST = sys.maxsize, BATCH_TOKENS // 8
LOGITS_AT_ONCE = 3  # the model's, in float32 and summed up to draw from
SIZES = {"float32": FLOAT, "bfloat16": HALF, "float16": HALF}


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Bytes in one process. `total`: the most that is there at once, which is less than the sum of the others where
    they take turns. `least`: the same where sampling has to do with little, since on a GPU a batch's cache takes what
    is free.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    cache: float = 0.0
    total: float
    least: float = 0.0

    @property
    def needed(self) -> float:
        return self.least or self.total


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How many processes, whether each holds a part of the weights by FSDP or by which stage of ZeRO (0: without) it
    holds what, and what they compute on.
    """

    processes: int = 1
    sharded: bool = False
    zero: int = 0
    gpu: bool = True

    @property
    def in_parts(self) -> bool:
        """Whether each holds a part of the weights."""
        return (self.sharded or self.zero == 3) and self.processes > 1


def way_of(
    hardware: DeviceOptions, adapters: AdapterOptions, bf16: bool, launch: Launch, **more: bool
) -> Way:
    return Way(
        size=SIZES[training_dtype(hardware.dtype, bf16, adapters.lora)],
        bf16=bf16,
        rank=adapters.lora_r if adapters.lora else 0,
        quantize=adapters.quantize,
        shards=launch.processes if launch.in_parts else 1,
        zero=launch.processes if launch.zero and launch.processes > 1 else 0,
        **more,
    )


def of_sft(options: SFT, shape: Shape, lengths: list[int], launch: Launch) -> Forecast:
    """`lengths`: of the rows to train on; of a pack all that is put together may see a mask of."""
    training = options.training
    way = way_of(
        options.hardware,
        options.adapters,
        training.bf16,
        launch,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
        mixed=training.bf16 and launch.in_parts,
        buckets=launch.processes > 1 and not launch.in_parts,
    )
    size = training.per_device_train_batch_size
    longest = sorted(lengths)[-size:]
    tokens = training.max_length * size if options.packing else longest[-1] * len(longest)
    masked = options.packing or longest[0] != longest[-1]
    given = Pass(
        tokens=tokens,
        width=tokens if options.packing else longest[-1],
        read=tokens,
        attention="masked" if masked else "kernel",
        logits="tiles",
        gpu=launch.gpu,
    )
    return alone(shape, way, given)


def of_pairwise(
    fit: PairwiseOptions, shape: Shape, lengths: list[tuple[int, int]], launch: Launch
) -> Forecast:
    """`lengths`: of the chosen and the rejected text of each pair."""
    training = fit.training
    way = way_of(
        fit.hardware,
        fit.adapters,
        training.bf16,
        launch,
        checkpointing=training.gradient_checkpointing,
        accumulates=training.gradient_accumulation_steps > 1,
    )
    batch = sorted(lengths, key=max)[-training.per_device_train_batch_size :]
    width = max(batch[-1])
    given = Pass(
        tokens=2 * len(batch) * width,
        width=width,
        read=sum(chosen - 1 for chosen, _ in batch) if fit.lm_coef else 0,
        attention="kernel" if all(pair == (width, width) for pair in batch) else "masked",
        logits="chunks" if fit.lm_coef else None,
        gpu=launch.gpu,
    )
    # The language model's own output layer is held whole and fixed.
    return alone(shape, way, given, shape.embedding * way.size if fit.lm_coef and not shape.tied else 0.0)


def alone(shape: Shape, way: Way, given: Pass, besides: float = 0.0) -> Forecast:
    """Of a model that learns by itself; `besides`: frozen weights."""
    step = learning(shape, way, given)
    weights, optimiser = weight_bytes(shape, way) + besides, optimiser_bytes(shape, way)
    return Forecast(
        weights=weights,
        gradients=step.gradients,
        optimiser=optimiser,
        activations=step.activations,
        total=weights + standing_bytes(shape, way) + step.peak,
    )


def of_ppo(
    options: PPO, policy: Shape, value: Shape, prompts: list[int], launch: Launch
) -> tuple[Forecast, Forecast | None]:
    """`prompts`: their lengths. The second: of the critic, where it has a process of its own."""
    models, ppo = options.models, options.ppo
    own = -(-ppo.rollout_batch_size // launch.processes)
    minibatch = most_of_a_minibatch(options, launch)
    micro = min(ppo.per_device_train_batch_size, minibatch)
    way = way_of(
        models.hardware,
        models.adapters,
        models.bf16,
        launch,
        checkpointing=models.gradient_checkpointing,
        accumulates=minibatch > micro,
    )
    longest = max(prompts) + options.max_new_tokens
    written = not launch.gpu and longest <= SHORT and models.attn_implementation in ("auto", "eager")
    for_policy = Pass(
        tokens=micro * longest,
        width=longest,
        read=micro * options.max_new_tokens,
        attention="written out" if written else "packed",
        logits="chunks",
        gpu=launch.gpu,
    )
    for_value = replace(for_policy, logits=None)
    of_policy, of_value = learning(policy, way, for_policy), learning(value, way, for_value)
    # A pass that is a whole epoch is kept from the rollout on; the policy's where its log-probabilities are made anew.
    whole = (
        ppo.num_mini_batches == 1
        and own <= ppo.per_device_train_batch_size
        and not (launch.in_parts or way.zero)
    )
    again = way.bf16 or way.size != FLOAT or bool(way.quantize)
    values = kept_bytes(value, way, for_value) if whole else 0.0
    kept = kept_bytes(policy, way, for_policy) if whole and again else 0.0
    # Passes without gradients are of four times as many rows.
    reference = forward_bytes(
        policy, way, replace(for_policy, tokens=4 * for_policy.tokens, read=4 * for_policy.read)
    )
    scores = forward_bytes(value, way, replace(for_value, tokens=4 * for_value.tokens))
    cache, sampling = sampled_bytes(
        options, policy, way, prompts, own, launch, MOST if launch.gpu else BATCH_TOKENS
    )
    _, least = sampled_bytes(
        options, policy, way, prompts, own, launch, LEAST if launch.gpu else BATCH_TOKENS
    )
    frozen = way.size if models.frozen_dtype == "auto" else SIZES[models.frozen_dtype]
    still = Way(size=frozen, bf16=way.bf16, shards=way.shards, zero=way.zero)

    def together(shapes: list[Shape], learns: list[Learning], peak: float, *drawn: float) -> Forecast:
        """`drawn`: the cache, and what sampling takes with it and with the least."""
        weights = sum(weight_bytes(shape, way) for shape in shapes)
        weights += 0 if way.rank else sum(weight_bytes(shape, still) for shape in shapes)
        if options.gold_pm and policy in shapes:  # whole on each, whatever the launch
            weights += weight_bytes(
                shape_of(options.gold_pm, "SEQ_CLS", "--gold-pm"), Way(size=way.size, bf16=way.bf16)
            )
        optimiser = sum(optimiser_bytes(shape, way) for shape in shapes)
        all_the_time = weights + sum(standing_bytes(shape, way) for shape in shapes)
        cached, most, least = drawn or (0.0, 0.0, 0.0)
        return Forecast(
            weights=weights,
            gradients=max(found.gradients for found in learns),
            optimiser=optimiser,
            activations=max(found.activations for found in learns),
            cache=cached,
            total=all_the_time + max(peak, most),
            least=all_the_time + max(peak, least),
        )

    if models.value_device is None:
        peak = max(values + max(reference, kept), kept + of_value.peak, of_policy.peak)
        return together([policy, value], [of_policy, of_value], peak, cache, sampling, least), None
    peak = max(kept + reference, of_policy.peak)
    return (
        together([policy], [of_policy], peak, cache, sampling, least),
        together([value], [of_value], max(of_value.peak, values, scores)),
    )


def most_of_a_minibatch(options: PPO, launch: Launch) -> int:
    """The most episodes of a minibatch that one process has, in the run's own draws: they are drawn from those of all."""
    ppo = options.ppo
    if launch.processes == 1:
        return ppo.rollout_batch_size // ppo.num_mini_batches
    draws = (minibatches(ppo, options.output.seed, step, ppo.rollout_batch_size) for step in range(ppo.steps))
    return max(int((drawn % launch.processes).bincount().max()) for step in draws for drawn in step)


def sampled_bytes(
    options: PPO, policy: Shape, way: Way, prompts: list[int], own: int, launch: Launch, most: int
) -> tuple[float, float]:
    """Of the cache of a batch of at most `most` tokens, and of all that sampling needs; `own`: replies of a process.
    What is in parts is gathered for it. The prompts pass through a cache of their own.
    """
    if options.engine != "transformers":
        return 0.0, 0.0
    longest = max(prompts) + options.max_new_tokens
    rows = max(1, min(options.batch_size, own, most // longest))
    cache = cache_bytes(policy, way.size, rows, longest)
    filled = min(rows * max(prompts), most, BATCH_TOKENS if launch.gpu else CPU_PREFILL_TOKENS)
    given = Pass(tokens=filled, width=max(prompts), gpu=launch.gpu)
    passing = cache_bytes(policy, way.size, filled, 1) + forward_bytes(policy, way, given)
    drawing = LOGITS_AT_ONCE * FLOAT * rows * policy.vocabulary
    gathered = weight_bytes(policy, replace(way, shards=1)) if launch.in_parts else 0.0
    return cache, gathered + cache + max(passing, drawing)

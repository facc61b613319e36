"""What a model that learns, or only answers, holds in bytes: the tensors by name, and when they are there together.

Counted are those that autograd keeps of a layer of Llama's kind (RMSNorm, rotary angles, grouped queries, gated MLP),
which tests hold against what it keeps in truth. Of a token, with D numbers in a state, Q in queries, K in keys, I in
the MLP:

    norm 1            its input and (where its weight learns) the normalised input      D + D
    q, k, v           their input                                                       D, or D each in 16 bits
    attention         queries, keys, values, what is attended                           Q + K + K + Q
    norm 2            as norm 1                                                         D + D
    gate, up          their input                                                       D, or D each in 16 bits
    activation        of the gate, both sides of the product, and the product           I + I + I + I

A frozen layer keeps no input, but its adapter does. Under autocast each of the layers makes a copy of its input in 16
bits, and one of its weight where that has 32; normalisation keeps 32 bits whatever the type of the states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cai_cli.compute.logit_chunks import CHUNK_LOGITS
from cai_cli.training.memory.shape import Shape

# Bytes of a weight: 4 bits with a scale in 8 bits for each 64 and one in 32 for each 256 of those; 8 bits.
QUANTISED = {"4bit": 1 / 2 + 1 / 64 + 4 / (64 * 256), "8bit": 1.0}
FLOAT, HALF = 4, 2
# TRL's loss makes logits of so many tokens and of so much of the vocabulary at a time.
TILE_TOKENS, TILE_WORDS = 4096, 32_768
# DeepSpeed's own settings: a buffer in which gradients are reduced, and how many weights stage 3 leaves whole at a time.
BUCKET, LIVE = FLOAT * 500_000_000, 1_000_000_000
# Without its kernel, on a CPU: seven numbers in float32 and a truth value of each logit, one step after the other.
IN_STEPS = 7 * FLOAT + 1


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a model is held. `size`: bytes of a weight; `bf16`: under autocast; `rank`: of adapters, 0 where all weights
    learn; `shards`: processes that share each weight, `mixed`: whose FSDP puts it together in 16 bits; `zero`: processes
    among which DeepSpeed divides gradients and optimiser, 0 without it; `buckets`: DDP holds gradients once more;
    `accumulates`: gradients are there while activations are.
    """

    size: int = FLOAT
    bf16: bool = False
    rank: int = 0
    quantize: str | None = None
    checkpointing: bool = False
    accumulates: bool = False
    shards: int = 1
    mixed: bool = False
    zero: int = 0
    buckets: bool = False

    @property
    def states(self) -> int:
        """Bytes of a number in a state, and of a weight at work."""
        return HALF if self.mixed else self.size

    @property
    def casts(self) -> bool:
        """Whether what layers of 32 bits compute is cast to 16."""
        return self.bf16 and self.states == FLOAT

    @property
    def computed(self) -> int:
        """Bytes of what linear layers give."""
        return HALF if self.bf16 and not self.quantize else self.states

    @property
    def read(self) -> int:
        """Bytes of what linear layers, or the adapters on them, read."""
        return HALF if self.bf16 else FLOAT if self.rank else self.states


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What goes through the model at once: `tokens`, padding included, in rows of up to `width`. `read`: tokens of
    which logits are needed. `attention`: by a kernel, by one that is given a mask, of packed rows by a kernel, of packed
    rows in its defining steps. `logits`: made tile by tile by TRL, in chunks by ours, not at all.
    """

    tokens: int
    width: int
    read: int = 0
    attention: Literal["kernel", "masked", "packed", "written out"] = "kernel"
    logits: Literal["tiles", "chunks"] | None = None
    gpu: bool = True


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Bytes of gradients and of activations at their most, and of what is there at once of both and all in passing."""

    gradients: float
    activations: float
    peak: float


def trained(shape: Shape, way: Way) -> int:
    """Numbers that learn."""
    return way.rank * shape.adapter if way.rank else shape.weights


def weight_bytes(shape: Shape, way: Way) -> float:
    """All of a model's weights in one process, adapters included."""
    packed = shape.linear * QUANTISED[way.quantize] if way.quantize else shape.linear * way.size
    rest = (shape.weights - shape.linear) * way.size
    return (packed + rest + FLOAT * way.rank * shape.adapter) / way.shards


def learned_size(way: Way) -> int:
    """Bytes of a number that learns: adapters have 32 bits whatever the base has."""
    return FLOAT if way.rank else way.size


def gradient_bytes(shape: Shape, way: Way) -> float:
    return trained(shape, way) * learned_size(way) / (way.zero or way.shards)


def optimiser_bytes(shape: Shape, way: Way) -> float:
    """AdamW's two moments; fused, it needs nothing besides. DeepSpeed steps a copy of the process's weights, and keeps the
    buffer that gradients are reduced in.
    """
    moments = 2 * gradient_bytes(shape, way)
    return moments + FLOAT * trained(shape, way) / way.zero + BUCKET if way.zero else moments


def standing_bytes(shape: Shape, way: Way) -> float:
    """What learning holds at all times beside the weights: DeepSpeed the gradients too."""
    return optimiser_bytes(shape, way) + (gradient_bytes(shape, way) if way.zero else 0)


def attention_bytes(shape: Shape, way: Way, given: Pass) -> float:
    """Of a token and layer, kept for the backward pass by attention and the layer behind it."""
    q, k = shape.queries, shape.keys
    size = HALF if way.casts else way.computed
    # The adapter of the layer behind reads a copy where the type is not its own.
    behind = q * way.read if way.rank and (way.bf16 or way.states != FLOAT) else 0
    weights = weights_kept(shape, way, given)
    if (
        given.attention == "written out"
    ):  # tables of all heads, the weights, and the attended tokens put together
        return (3 * q + q) * size + weights + behind
    packed = q * size if given.attention == "packed" else 0  # the attended tokens, beside their table
    if weights:
        return 4 * q * size + weights + packed + behind
    if given.attention == "masked":
        return (
            4 * q + given.width
        ) * size + behind  # keys and values repeated for all heads, and a mask of numbers
    return (2 * q + 2 * k) * size + packed + behind


def weights_kept(shape: Shape, way: Way, given: Pass) -> float:
    """Attention's weights of a token and layer where no kernel makes do without them: in our own steps, and on a GPU,
    where no kernel takes grouped queries in 32 bits without a mask, in torch's.
    """
    grouped = (
        given.gpu and way.computed == FLOAT and shape.keys < shape.queries and given.attention != "masked"
    )
    return FLOAT * shape.heads * given.width if grouped or given.attention == "written out" else 0


def mlp_bytes(shape: Shape, way: Way) -> float:
    """Of a token and layer, with the norm in front of it."""
    d, inner = shape.hidden, shape.inner
    own = way.casts or (way.rank and way.states != FLOAT)
    inputs = (2 if own and shape.gated else 1) * d * way.read
    kept = (3 if shape.gated else 1) * inner * way.computed + inner * way.read
    return norm_bytes(shape, way) + inputs + kept


def norm_bytes(shape: Shape, way: Way) -> float:
    return shape.hidden * (FLOAT + (0 if way.rank else way.states))


def layer_bytes(shape: Shape, way: Way, given: Pass) -> float:
    """All that a layer keeps of a token for the backward pass."""
    own = way.casts or (way.rank and way.states != FLOAT)
    inputs = (3 if own else 1) * shape.hidden * way.read
    ranks = way.rank * shape.matrices / shape.layers * way.read
    return (
        norm_bytes(shape, way) + inputs + attention_bytes(shape, way, given) + mlp_bytes(shape, way) + ranks
    )


def copied_weights(shape: Shape, way: Way) -> float:
    """16-bit copies of the layers' weights, which the backward pass needs; adapters have 32 bits in any base."""
    base = HALF * shape.linear if way.casts and not way.quantize else 0
    return base + (HALF * way.rank * shape.adapter if way.bf16 else 0)


def kept_bytes(shape: Shape, way: Way, given: Pass) -> float:
    """Activations of a whole pass when its forward half is through, without logits."""
    last = given.tokens * norm_bytes(shape, way) + given.read * shape.hidden * way.read
    if way.checkpointing:
        return shape.layers * given.tokens * shape.hidden * way.states + last
    whole = shape.layers * given.tokens * layer_bytes(shape, way, given)
    if given.attention in ("packed", "written out"):  # the last MLP is computed where it is read
        whole -= (given.tokens - given.read) * mlp_bytes(shape, way)
    return whole + copied_weights(shape, way) + last


def logit_bytes(shape: Shape, way: Way, given: Pass) -> float:
    """What the vocabulary costs at its most, in the backward pass, without the output layer's gradient."""
    if given.logits is None or not given.read:
        return 0
    if given.logits == "tiles":
        rows = min(given.read, TILE_TOKENS)
        words = min(shape.vocabulary, TILE_WORDS)
        size = HALF if way.bf16 else way.states
        in_steps = 0 if given.gpu else IN_STEPS
        tile = rows * (TILE_WORDS * size if given.gpu else words * (size + in_steps))
        return tile + given.read * shape.hidden * FLOAT + (words * shape.hidden * HALF if way.casts else 0)
    rows = min(given.read, max(1, CHUNK_LOGITS // shape.vocabulary))
    # Log-probabilities, the gradient of the one that is read, that of all logits, and in their own type.
    return rows * shape.vocabulary * (3 * FLOAT + (HALF if way.bf16 or way.states == HALF else 0))


def forward_bytes(shape: Shape, way: Way, given: Pass) -> float:
    """Of a pass that nothing is learned from: a layer's MLP at work beside the states, or logits of a chunk."""
    size = HALF if way.bf16 else way.states
    layer = given.tokens * (2 * shape.hidden * way.states + 3 * shape.inner * size)
    return layer + (logit_bytes(shape, way, given) if given.logits else 0)


def learning(shape: Shape, way: Way, given: Pass) -> Learning:
    """Gradients and activations of a step, and the most of them that is there at once.

    Going back, a layer's gradients come as its activations go. So it is most at one of three moments: when logits are
    differentiated, in the first layer on the way back, or at the end of it.
    """
    full = not way.rank
    gradients = gradient_bytes(shape, way)
    added = 0 if way.zero else gradients  # to what stands
    before = added if way.accumulates else 0
    kept, logits = kept_bytes(shape, way, given), logit_bytes(shape, way, given)
    words = shape.embedding * learned_size(way) if full else 0
    # The output layer's gradient is the first one
    first = words if given.logits and (shape.tied or shape.head) else 0
    layer = shape.linear / shape.layers
    within: float = given.tokens * (2 * shape.hidden * way.states + 2 * shape.inner * way.computed)
    # Gradients of attention's weights and scores
    within += 2 * given.tokens * weights_kept(shape, way, given)
    within += layer * learned_size(way) if full else 0
    if way.checkpointing:
        within += given.tokens * layer_bytes(shape, way, given) + copied_weights(shape, way) / shape.layers
    forward = kept + logits
    if way.checkpointing and full:  # autocast keeps its copies until the forward pass is through
        forward += copied_weights(shape, way)
    moments: list[float] = [forward + first, kept + within + first, words]
    if not way.accumulates:
        moments[-1] += added
    passing = gathered_bytes(shape, way, given) + reduced_bytes(shape, way)
    peak = before + max(moments) + passing
    activations = kept + max(logits, within if way.checkpointing else 0)
    return Learning(gradients=gradients, activations=activations, peak=max(peak, added + passing))


def gathered_bytes(shape: Shape, way: Way, given: Pass) -> float:
    """What FSDP puts together of weights held in parts: embeddings and output layer for the whole pass, a layer at
    work, one that comes and the message it comes in; and once more the output layer, which TRL reads as a whole. What
    DeepSpeed's stage 3 does, which gives back only what is not needed soon.
    """
    if way.shards == 1:
        return 0
    if way.zero:
        return min(shape.weights, LIVE + shape.embedding + shape.head) * way.states
    root = (shape.embedding + shape.head) * way.states
    again = shape.embedding * way.states if given.logits == "tiles" else 0
    return root + 3 * shape.linear / shape.layers * way.states + again


def reduced_bytes(shape: Shape, way: Way) -> float:
    """Gradients on their way to other processes: FSDP's of a layer and its message, DDP's buckets, which hold all. To the
    optimiser: DeepSpeed lays its part out flat.
    """
    if way.zero:
        return gradient_bytes(shape, way)
    if way.shards > 1:
        return 2 * shape.linear / shape.layers * learned_size(way) if not way.rank else 0
    return gradient_bytes(shape, way) if way.buckets else 0


def cache_bytes(shape: Shape, size: int, rows: int, tokens: int) -> float:
    """Keys and values of rows of so many tokens."""
    return 2.0 * shape.layers * shape.keys * size * rows * tokens

"""What a model's passes may do to be fast and still give its own numbers: those of a row alone in a pass,
without padding.

Each shortcut (rows padded to one length, a shared start computed once, trees, packed rows) is used where the
words of the configuration allow it and a trial with random tokens gave the same numbers. What was found is
kept beside the model, with the reason of each "no", and goes into manifests.

CAI_SHORTCUTS=0 in the environment switches all of them off but padding: the first thing to try where a number
looks wrong.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SWITCH = "CAI_SHORTCUTS"
PACKED, TRIMMED = "packed rows", "the last MLP where it is read alone"
PADDING = ("right padding", "right padding without a mask", "left padding", "a pass over several rows")
ANY_LENGTH = 1 << 30
# Tokens of the longest row that an architecture is tried with, and those that follow on it at most.
TRIAL, ROOM = 40, 8
# Windows up to this length are crossed by trials of padding; beyond, transformers' own masks are trusted
# there.
CROSSED = 512
# The same angles whatever else is in the pass.
FIXED_ROPE = {"default", "linear", "yarn", "llama3", "proportional"}
LOCAL = re.compile(r"window|local|attention_chunk|attn_chunk|index_topk")
# Names of counts and shares that LOCAL finds too.
NO_LENGTH = re.compile(r"layer|pattern|experts|heads|prob|num_")
# What a pass raises that an architecture does not know in this form. Lack of memory and a device's faults are
# RuntimeErrors of other words, and go their way. A "primitive" is oneDNN's.
SHAPES = re.compile(
    r"shape|size|dimension|must match|index .*out of|broadcast|primitive|same dtype", re.IGNORECASE
)
DEVICE = re.compile(r"memory|cuda|cublas|cudnn|hip", re.IGNORECASE)


@dataclass(slots=True)
class Shortcuts:
    """What is known of one model. `reasons`: shortcut -> why it is not used; empty where it is, once it has
    been tried.

    `even`: rows of more tokens share a pass only with rows as long as they are. `sees_all`: up to this length
    a token sees all that comes before it. `trial`: tokens of the longest row to try.
    """

    kind: str
    even: int = ANY_LENGTH
    sees_all: int = ANY_LENGTH
    trial: int = TRIAL
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def packs(self) -> bool:
        """Whether rows are packed, as `packed_rows.prepare` has found."""
        return self.reasons.get(PACKED) == ""

    def allows(self, shortcut: str, reason: Callable[[], str], instead: str = "") -> bool:
        """Whether `reason`, which is asked once, is empty. `instead`: logged once where it is not: what is
        done then.
        """
        if shortcut not in self.reasons:
            self.reasons[shortcut] = found = switched_off(shortcut) or reason()
            if found and instead:
                logger.warning("%s: %s gives %s, so %s; this is slower", self.kind, shortcut, found, instead)
        return not self.reasons[shortcut]

    def facts(self) -> dict[str, str]:
        """Shortcut -> "yes", or why not, of those that were asked about."""
        return {name: f"no: {reason}" if reason else "yes" for name, reason in sorted(self.reasons.items())}


LEFT_OUT: set[str] = set()  # shortcuts by name, for benchmarks that measure one alone


def switched_off(shortcut: str) -> str:
    """Why a shortcut is not to be tried; empty where it is."""
    if os.environ.get(SWITCH) == "0" and shortcut not in PADDING:
        return f"{SWITCH}=0"
    return "left out" if shortcut in LEFT_OUT else ""


FOUND: WeakKeyDictionary[Any, Shortcuts] = WeakKeyDictionary()


def shortcuts_of(model: Any) -> Shortcuts:
    """What is known of the model, from its configuration on. One entry for a model and the transformer inside
    it.
    """
    trunk = model.base_model
    if trunk not in FOUND:
        found = FOUND[trunk] = Shortcuts(type(model).__name__)
        if (setting := os.environ.get(SWITCH, "1")) not in ("0", "1"):
            logger.warning("%s=%s is neither 0 nor 1, and changes nothing", SWITCH, setting)
        text = model.config.get_text_config()
        for length, reason in local_words(text):
            found.sees_all = min(found.sees_all, length)
            found.reasons["shared starts"] = reason
            if length <= CROSSED:
                found.trial = max(found.trial, length + ROOM)
            if "chunk" in reason:  # Cut at places that padding would shift.
                found.even = min(found.even, length)
        for length, reason in rope_words(text):
            found.even, found.sees_all = min(found.even, length), min(found.sees_all, length)
            found.reasons["longer rows together"] = reason
        context = (
            getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None) or ANY_LENGTH
        )
        found.trial = max(2, min(found.trial, context - ROOM, found.even))
    return FOUND[trunk]


def local_words(text: Any) -> Iterator[tuple[int, str]]:
    """Lengths beyond which some layer sees a part alone of what comes before: windows, chunks, the best few
    keys.
    """
    layers = (
        getattr(text, "attention_layers", None)
        or getattr(text, "layer_types", None)
        or ["local", "sliding", "chunked"]
    )
    if not any(
        word in str(layer) for layer in layers for word in ("local", "sliding", "chunked", "sparse", "index")
    ):
        return
    for name, value in text.to_dict().items():
        if (
            not LOCAL.search(name)
            or NO_LENGTH.search(name)
            or isinstance(value, bool)
            or not isinstance(value, int)
        ):
            continue
        if value > 0 and not ("sliding" in name and getattr(text, "use_sliding_window", True) is False):
            yield value, f"{name} {value}"


def rope_words(text: Any) -> Iterator[tuple[int, str]]:
    """Lengths of a pass beyond which the angles of all its rows change with the longest of them."""
    given = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    context = getattr(text, "max_position_embeddings", None) or ANY_LENGTH
    for one in (given, *(value for value in given.values() if isinstance(value, dict))):
        kind = one.get("rope_type") or one.get("type") or "default"
        if kind in FIXED_ROPE:
            continue
        starts = (
            one.get("original_max_position_embeddings"),
            getattr(text, "original_max_position_embeddings", None),
        )
        length = context if "dynamic" in kind else min((start for start in starts if start), default=context)
        known = "dynamic" in kind or kind in ("longrope", "su")
        yield (
            length if known else 0,
            f"rope_type {kind}, by the length of a pass{f' above {length} tokens' if known else ''}",
        )


# Trials


def trial_rows(model: Any, lengths: list[int], shared: int = 0) -> list[list[int]]:
    """Rows of random tokens, the same at every call, that start with `shared` tokens alike. None of them is
    the pad token.
    """
    size = model.get_input_embeddings().num_embeddings
    generator = torch.Generator().manual_seed(0)
    pad = model.config.get_text_config().pad_token_id
    ids = torch.randint(size, (len(lengths) + 1, max(lengths)), generator=generator)
    rows = torch.where(ids == (-1 if pad is None else pad), (ids + 1) % size, ids).tolist()
    return [(rows[-1][:shared] + row[shared:])[:length] for row, length in zip(rows, lengths, strict=False)]


def close(got: Tensor, wanted: Tensor, exact: bool) -> bool:
    """Whether two tensors are the same but for rounding, against the spread of what is wanted."""
    got, wanted = got.float(), wanted.float()
    spread = (wanted - wanted.mean()).abs().max() if exact else wanted.abs().max()
    return bool((got - wanted).abs().max() <= (2e-4 if exact else 0.05) * spread)


def is_exact(model: Any) -> bool:
    """Whether it computes in float32: weights held in 4 or 8 bits may be computed with in 16, whatever the others
    are held in.
    """
    if model.dtype != torch.float32 or torch.is_autocast_enabled(model.device.type):
        return False
    return not any(computes_in_16_bits(module) for module in model.modules())


def computes_in_16_bits(module: Any) -> bool:
    """Of bitsandbytes' layers: 4 bits are computed with as the settings say, 8 bits in float16 on a GPU."""
    if type(module).__name__ == "Linear8bitLt":
        return bool(module.weight.device.type != "cpu")
    return getattr(module, "compute_dtype", None) in (torch.bfloat16, torch.float16)


def says_cannot(error: Exception) -> bool:
    """Whether an error of a trial says that the architecture takes, makes or names something else; others are
    no answer.
    """
    if isinstance(error, RuntimeError) and not isinstance(error, NotImplementedError):
        return (
            type(error) is RuntimeError and bool(SHAPES.search(str(error))) and not DEVICE.search(str(error))
        )
    return isinstance(error, (AttributeError, LookupError, NotImplementedError, TypeError, ValueError))


def difference(model: Any, attempt: Callable[[], tuple[Tensor, Tensor]]) -> str:
    """Why a shortcut is not to be used, empty where it gives the wanted tensor: `attempt` returns (got,
    wanted).
    """
    with at_rest(model):
        try:
            got, wanted = attempt()
        except Exception as error:
            if not says_cannot(error):
                raise
            return f"an error ({' '.join(str(error).split())[:200] or type(error).__name__})"
    return "" if close(got, wanted, is_exact(model)) else "other numbers than of each row alone"


@contextmanager
def at_rest(model: Any) -> Iterator[None]:
    """Within, no gradients and no layer in training mode, whatever the model is doing."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


# Rows padded on the right, and without padding


def right_padding(model: Any, masked: bool) -> bool:
    """Whether the transformer's states of rows padded on the right are those of each row alone; with a mask,
    or without.
    """
    name = "right padding" if masked else "right padding without a mask"
    instead = "only rows of one length share a pass"
    return shortcuts_of(model).allows(
        name, lambda: difference(model, lambda: padded_states(model, masked)), instead
    )


def padded_states(model: Any, masked: bool) -> tuple[Tensor, Tensor]:
    longest = shortcuts_of(model).trial
    rows = trial_rows(model, [longest, max(1, longest - 15), min(6, longest)])
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    got = trunk_states(model, ids, mask if masked else None)[mask.bool()]
    return got, torch.cat(
        [trunk_states(model, ids[n : n + 1, : len(row)], None)[0] for n, row in enumerate(rows)]
    )


def trunk_states(model: Any, ids: Tensor, mask: Tensor | None) -> Tensor:
    """(B, T, D): the last hidden states. With a mask, positions count from each row's first real token."""
    more = (
        {} if mask is None else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    )
    states: Tensor = model.base_model(input_ids=ids, use_cache=False, **more)[0]
    return states


def row_states(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    masked: bool = True,
    compute: Callable[[Any, Tensor, Tensor | None], Tensor] = trunk_states,
) -> Tensor:
    """(B, T, D): the last hidden states of padded rows (B, T), as of each row alone; anything at padding.

    `masked`: whether the model is given the mask, where it takes padding. `compute`: what is made of rows, if
    not states.
    """
    lengths = mask.sum(-1)
    same = bool((lengths == lengths[0]).all())
    if (same or int(lengths.max()) <= shortcuts_of(model).even) and right_padding(model, masked):
        return compute(model, ids, mask if masked else None)
    parts, places = [], []
    for length in lengths.unique().tolist():
        real = mask.bool() & (lengths == length).unsqueeze(-1)
        parts.append(compute(model, ids[real].view(-1, length), None).flatten(0, 1))
        places.append(real.flatten().nonzero().squeeze(-1))
    states = torch.cat(parts)
    flat = states.new_zeros(ids.numel(), states.size(-1)).index_copy(0, torch.cat(places), states)
    return flat.view(*ids.shape, -1)

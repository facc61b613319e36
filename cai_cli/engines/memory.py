"""How many tokens a batch may hold on a device: by its free memory when the model is there, and half as many after
each time that it was not enough.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from cai_cli.compute.batches import BATCH_TOKENS

logger = logging.getLogger(__name__)

SHARE = 0.8  # of the free memory; the rest is for the pass itself


class Room:
    """`tokens`: rows times their whole length, of one batch."""

    def __init__(self, model: Any, flag: str) -> None:
        self.flag = flag
        self.device = model.device
        self.tokens = tokens_that_fit(model)

    def halve(self, tokens: int) -> None:
        """Out of memory with a batch of so many: say it once, and keep to half."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.tokens = max(1, tokens // 2)
        logger.warning(
            "%s: out of memory with %d tokens in a batch; from here on at most %d",
            self.flag,
            tokens,
            self.tokens,
        )


def tokens_that_fit(model: Any) -> int:
    """Of which keys and values fit into the free memory of a GPU; on other devices what has proved itself."""
    if model.device.type != "cuda":
        return BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(BATCH_TOKENS // 8, int(SHARE * free / bytes_a_token(model.config, model.dtype.itemsize)))


def bytes_a_token(config: Any, itemsize: int) -> int:
    """Keys and values of a token in all layers, twice: a cache that grows is copied layer by layer, and the rows
    that go on are copied when others end.
    """
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * 2 * text.num_hidden_layers * heads * size * itemsize)

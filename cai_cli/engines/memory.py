"""How many tokens a batch may hold on a device: by its free memory when the model is there, and half as many after
each time that it was not enough.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import torch

from cai_cli.compute.batches import BATCH_TOKENS

logger = logging.getLogger(__name__)

SHARE = 0.8  # of the free memory; the rest is for the pass itself


class TokenBudget:
    """`tokens`: rows times their whole length, of one batch; measured anew for each, since other models and an
    optimiser may have come.
    """

    def __init__(self, model: Any, flag: str) -> None:
        self.model, self.flag = model, flag
        self.limit = sys.maxsize  # what has proved too much, halved

    @property
    def tokens(self) -> int:
        return min(self.limit, tokens_that_fit(self.model))

    def halve(self, tokens: int) -> None:
        """Out of memory with a batch of so many: say it once, and keep to half."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        self.limit = max(1, tokens // 2)
        logger.warning(
            "%s: out of memory with %d tokens in a batch; from here on at most %d",
            self.flag,
            tokens,
            self.limit,
        )


def tokens_that_fit(model: Any) -> int:
    """Of which keys and values fit into the free memory of a GPU; on other devices, and of models without, what has
    proved itself.
    """
    if model.device.type != "cuda" or not (size := bytes_a_token(model.config, model.dtype.itemsize)):
        return BATCH_TOKENS
    free, _ = torch.cuda.mem_get_info(model.device)
    free += torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return max(BATCH_TOKENS // 8, int(SHARE * free / size))


def bytes_a_token(config: Any, itemsize: int) -> int:
    """Keys and values of a token in all layers, twice: layers of other kinds than ours are copied as they grow, and
    prompts pass through copies on their way in. 0 where there is no attention.
    """
    text = config.get_text_config()
    queries = getattr(text, "num_attention_heads", None)
    if not queries:
        return 0
    heads = getattr(text, "num_key_value_heads", None) or queries
    if getattr(text, "multi_query", False):  # Falcon's
        heads = 1 if not getattr(text, "new_decoder_architecture", False) else text.num_kv_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // queries
    numbers = 2 * heads * size
    if latent := getattr(text, "kv_lora_rank", None):  # one vector for all heads
        numbers = latent + getattr(text, "qk_rope_head_dim", 0)
    return int(2 * text.num_hidden_layers * numbers * itemsize)

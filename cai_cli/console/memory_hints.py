"""Where memory runs out: one line, with what takes less of it and is not taken yet."""

from __future__ import annotations

import re
from typing import Any

from cai_cli.console.groups import values_of
from cai_cli.console.options import flag_name
from cai_cli.errors import RunError, lacks_memory
from cai_cli.processes.ranks import by_deepspeed, by_fsdp, in_zero_parts

ASKED = re.compile(r"tried to allocate ([\d.]+) ?([a-z]+)", re.IGNORECASE)
# Sizes of what goes through a model at once: halving one halves what a pass takes.
SIZES = ("per_device_train_batch_size", "batch_size")


def memory_error(error: BaseException, options: Any) -> RunError | None:
    """What to say of a lack of memory in a command with these options; None of another error."""
    if not lacks_memory(error):
        return None
    told, asked = "out of memory", ASKED.search(str(error))
    if asked:
        amount = f"{float(asked[1]) / 1e9:.2f} GB" if asked[2] == "bytes" else f"{asked[1]} {asked[2]}"
        told += f": {amount} more could not be had"
    return RunError(told, what_helps(values_of(options)))


def what_helps(values: dict[str, Any]) -> str:
    """In the order of what each gives: those flags of a command with these `values` that are not given."""
    found = []
    lora, quantize, in_parts = values.get("lora"), values.get("quantize"), by_fsdp() or in_zero_parts()
    cut = by_fsdp() or by_deepspeed()  # neither can hold few bits in parts
    if lora is False:
        found.append("--lora")
    elif lora and quantize != "4bit" and not cut:
        found.append("--quantize 4bit")
    if values.get("gradient_checkpointing") is False:
        found.append("--gradient-checkpointing")
    if lora is not None and not quantize and not in_parts and values.get("device") != "cpu":
        found.append("the model in parts on several GPUs (accelerate launch, scripts/accelerate/fsdp2.yaml)")
    found += [
        f"{flag_name(name)} {values[name] // 2} (now {values[name]})"
        for name in SIZES
        if (values.get(name) or 1) > 1
    ]
    takes = f"{', or '.join(found)} takes less" if found else "take a machine with more memory"
    return f"{takes}; --dry-run tells how much" if "lora" in values else takes

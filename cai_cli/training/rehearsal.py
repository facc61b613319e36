"""What only saving would find is found before the first step: the model is saved once, untrained, and deleted
again.

A generation config that transformers refuses, weights that share memory, a folder or file system that takes
no such file, no room for a checkpoint and the model: each is one line before any training is paid for.
"""

from __future__ import annotations

import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from cai_cli.artifacts.models import REHEARSAL
from cai_cli.console.options import TrainingOptions
from cai_cli.errors import CaiError, RunError, UserError, first_line
from cai_cli.models.adapters import ADAPTER, save_whole, trainable_state
from cai_cli.models.finite import odd_weight
from cai_cli.models.merging import is_peft
from cai_cli.models.saved_configs import as_settled
from cai_cli.processes.ranks import world_size

ADAMW_STATES = 3  # a checkpoint holds each weight that learns and two moments of it


def rehearse_saving(
    model: Any,
    tokenizer: Any,
    folder: Path,
    checkpoints: Path,
    saves: int,
    learned: int,
    kept: int = 0,
    weights: dict[str, Any] | None = None,
) -> None:
    """Save the model as it will be after training, to a folder that is removed again. Raises CaiError or
    OSError.

    For the first process, before the directory is claimed: a mistake found here costs no more than a new
    command.

    `saves`: checkpoints of the whole run; `learned`: bytes of all weights that learn; `kept`: bytes held
    beside a checkpoint; `weights`: all of a model that is in parts already (`training/parts.py`).
    """
    if (name := odd_weight(dict(model.named_parameters()) if weights is None else weights)) is not None:
        raise UserError(
            f"--model {model.name_or_path}: its weight {name} is not finite", "fetch or train the model again"
        )
    scratch = checkpoints / REHEARSAL
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        checkpoint = ADAMW_STATES * learned
        check_room(folder, checkpoint, saved_bytes(model), saves, kept)
        with (scratch / "size").open("wb") as stream:  # a limit on the size of a file; a hole takes no room
            stream.truncate(checkpoint if saves else 0)
        save_all(model, tokenizer, scratch, weights)
    except (CaiError, OSError):
        raise
    except (
        Exception
    ) as error:  # transformers, peft and safetensors refuse what they will not save by errors of many kinds
        problem = f"--model {model.name_or_path}: cannot be saved, trained or not: {first_line(error)}"
        raise UserError(problem, "mend the files of the model that it says it of") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for path in (checkpoints, folder):  # nothing that was made for it stays
            with suppress(OSError):
                path.rmdir()


def save_all(model: Any, tokenizer: Any, scratch: Path, weights: dict[str, Any] | None) -> None:
    """Whole weights, or of a model with adapters those and what is saved beside the merged weights."""
    if not is_peft(model):
        save_whole(model, tokenizer, scratch, weights)
        return
    model.save_pretrained(scratch / ADAPTER, state_dict=weights, save_embedding_layers=False)
    base = model.get_base_model()
    with as_settled(base, tokenizer):
        base.config.save_pretrained(scratch)
        if base.can_generate():
            base.generation_config.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)


def check_room(folder: Path, checkpoint: int, model: int, saves: int, kept: int) -> None:
    """Raise RunError where the disk has no room for what will lie there at once."""
    free = shutil.disk_usage(folder).free
    needed = kept + needed_bytes(checkpoint, model, saves)
    if needed > free:
        told = f"{folder}: {free / 1e9:.3g} GB are free; checkpoints and the trained model need {needed / 1e9:.3g} GB"
        raise RunError(told, "make room, choose another --out, or train fewer weights with --lora")


def needed_bytes(checkpoint: int, model: int, saves: int) -> int:
    """Two checkpoints are kept while a third is written, and both until the model is there."""
    return max(min(saves, 3) * checkpoint, min(saves, 2) * checkpoint + model)


def bytes_of(weights: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def saved_bytes(model: Any) -> int:
    """Of the whole model; one that is held in 4 or 8 bits is saved as large as its base lies on the disk."""
    on_disk = sum(file.stat().st_size for file in Path(model.name_or_path).glob("*.safetensors"))
    return max(bytes_of(model.parameters()), on_disk if getattr(model, "is_quantized", False) else 0)


def learned_bytes(model: Any) -> int:
    """Of the weights that learn."""
    return bytes_of(trainable_state(model).values())


def steps_of(rows: int, options: TrainingOptions) -> int:
    """Optimiser steps of a run over so many rows."""
    a_step = options.per_device_train_batch_size * options.gradient_accumulation_steps * world_size()
    return math.ceil(options.num_train_epochs * math.ceil(rows / a_step))

r"""base LM + revisions (harmless) + samples (helpful) -> SL-CAI: supervised fine-tuning on completions.

    cai sft --model base/ --data revisions.jsonl --data samples.jsonl --out sl-cai/

Paper section 3.2: the pretrained model is finetuned, not the helpful one; one epoch at a constant learning
rate. The loss is on the completion only. A datapoint is a prompt and its final revision, as in the article;
`--targets all` takes every revision, as section 3.1 has it. Trained by TRL's SFTTrainer. On several GPUs,
each with a copy of the model or a part of it:

    torchrun --nproc-per-node 8 -m cai_cli sft ...
    accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy TRANSFORMER_BASED_WRAP \
        -m cai_cli sft ...
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected, why_none
from cai_cli.console.messages import say, show_text, tell_dropped, tell_next, warn_all
from cai_cli.errors import RunError, UserError
from cai_cli.evaluation.cautions import target_cautions
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.models.templates import template_kwargs
from cai_cli.processes.ranks import check_quantize
from cai_cli.rows.trl_rows import RowReader
from cai_cli.training.sft.data import Target, TokenRow, read_targets, tokenise
from cai_cli.training.sft.settings import Options as Options
from cai_cli.training.trackers import check_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def run(options: Options) -> None:
    """Finetune the base model on revisions and helpful samples: SL-CAI (paper section 3).

    Example: cai sft --model base/ --data revisions.jsonl --data samples.jsonl --out sl-cai/
    """
    check_model(options.model, role="language model")
    check_trackers(options.report.report_to)
    check_quantize(options.adapters.quantize)
    artifact = ModelArtifact("sft", options)
    if artifact.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    reader = RowReader()
    how = (options.targets, options.output.seed, options.train_on_thinking, reader)
    by_file = [(source, list(read_targets(source, *how))) for source in options.data]
    found = [item for _, items in by_file for item in items]
    empty = [f"{source}: no rows in it" for source, items in by_file if not items]
    if not found:
        raise UserError(", ".join(empty), "its stage may have rejected everything")
    warn_all(empty)
    tell_dropped(reader.dropped)
    targets = [item for item in found if isinstance(item, Target)]
    rejected = [item for item in found if isinstance(item, Rejected)]

    from cai_cli.models.chat import check_thoughts_are_kept, stop_ids
    from cai_cli.models.templates import check_settings, install_template

    tokenizer = open_tokenizer(options)
    install_template(tokenizer, options.chat_template)
    kwargs = template_kwargs(options.chat_template_kwargs)
    check_settings(tokenizer, kwargs)
    if options.train_on_thinking:
        check_thoughts_are_kept(tokenizer, options.model, **kwargs)
    rows, unfit = tokenise(
        targets,
        tokenizer,
        stop_ids(tokenizer),
        options.training.max_length,
        kwargs,
        options.held_out,
        options.output.seed,
    )
    rejected += unfit
    train = [row for row in rows if not row.held_out]
    if not train:
        reasons = why_none(Counter(item.reason for item in rejected), options) or "all of it is held out"
        raise RunError(f"none of the {len(found)} rows can be trained on", reasons)
    if options.output.dry_run:
        dry_run(rows, tokenizer, len(rejected))
        return

    from cai_cli.training.sft.run import finetune

    texts = [target.completion[0]["content"] for target in targets]
    finetune(artifact, options, tokenizer, rows, rejected, target_cautions(texts))
    words = (options.output.out, "--prompts", "PROMPTS.jsonl", "--feedback-model", options.model)
    tell_next("cai label --model", *words, "--out", options.output.out.parent / "comparisons.jsonl")


def open_tokenizer(options: Options) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, or that of `--tokenizer-from`, which must give the model's tokens the same
    ids.
    """
    from cai_cli.models.chat import require_same_tokens
    from cai_cli.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    if options.tokenizer_from is None:
        return tokenizer
    other = load_tokenizer(options.tokenizer_from, "--tokenizer-from")
    require_same_tokens(tokenizer, other, f"--tokenizer-from {options.tokenizer_from}")
    return other


def dry_run(rows: list[TokenRow], tokenizer: PreTrainedTokenizerBase, rejected: int) -> None:
    """Show the first row token by token: what is trained on, and what is only read."""
    row = next(row for row in rows if not row.held_out)
    for index, label in zip(row.ids, row.labels, strict=True):
        mark = "loss" if label != -100 else "    "
        show_text(f"{mark}  {index:>7}  {tokenizer.decode([index])!r}")
    held_out = sum(row.held_out for row in rows)
    tokens = sum(len(row.ids) for row in rows)
    say(f"{len(rows)} rows, {held_out} of them held out, {tokens} tokens; {rejected} rows would be rejected")

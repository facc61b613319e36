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

from typing import TYPE_CHECKING

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.console.messages import say, show_text, tell_next
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.models.templates import template_kwargs
from cai_cli.processes.ranks import check_quantize
from cai_cli.training.sft.data import check_kinds
from cai_cli.training.sft.settings import Options as Options
from cai_cli.training.trackers import check_trackers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.sft.row_files import Rows


def run(options: Options) -> None:
    """Finetune the base model on revisions and helpful samples: SL-CAI (paper section 3).

    Example: cai sft --model base/ --data revisions.jsonl --data samples.jsonl --out sl-cai/
    """
    check_model(options.model, role="language model", trains=True)
    check_trackers(options.report.report_to)
    check_quantize(options.adapters.quantize)
    artifact = ModelArtifact("sft", options)
    if artifact.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    check_kinds(options.data, options.targets)  # before a tokenizer is loaded

    from cai_cli.models.chat import check_thoughts_are_kept
    from cai_cli.models.templates import check_settings, install_template

    tokenizer = open_tokenizer(options)
    install_template(tokenizer, options.chat_template)
    kwargs = template_kwargs(options.chat_template_kwargs)
    check_settings(tokenizer, kwargs)
    if options.train_on_thinking:
        check_thoughts_are_kept(tokenizer, options.model, **kwargs)

    from cai_cli.training.sft.row_files import rows_once_a_node

    with rows_once_a_node(artifact, options, tokenizer) as rows:
        if options.output.dry_run:
            from cai_cli.training.memory.told import tell_sft

            dry_run(rows, tokenizer)
            tell_sft(options, [len(row["input_ids"]) for row in rows.training])
            return

        from cai_cli.training.sft.run import finetune

        finetune(artifact, options, tokenizer, rows)
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


def dry_run(rows: Rows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Show the first row token by token: what is trained on, and what is only read."""
    row = rows.training[0]
    for index, label in zip(row["input_ids"], row["labels"], strict=True):
        mark = "loss" if label != -100 else "    "
        show_text(f"{mark}  {index:>7}  {tokenizer.decode([index])!r}")
    apart = [len(row["input_ids"]) for kind in rows.held_out.values() for row in kind]
    told = f"{len(rows)} rows, {len(apart)} of them held out, {rows.tokens + sum(apart)} tokens"
    say(f"{told}; {rows.rejected.total()} rows would be rejected")

"""base LM + revisions (harmless) + samples (helpful) -> SL-CAI: supervised fine-tuning on completions.

    cai sft --model base/ --data revisions.jsonl --data samples.jsonl --out sl-cai/

Paper section 3.2: the pretrained model is finetuned, not the helpful one; one epoch at a constant learning rate. The loss is
on the completion only. A datapoint is a prompt and its final revision, as in the article; `--targets all` takes every
revision, as section 3.1 has it. Trained by TRL's SFTTrainer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cai_cli.artifact import ModelArtifact, Rejected, reasons_text
from cai_cli.conversation import Conversation, message
from cai_cli.errors import RecordError, RunError, UserError
from cai_cli.jsonl import read_rows, write_rows
from cai_cli.keys import shuffled
from cai_cli.manifest import parse_weight
from cai_cli.models.load import check_model
from cai_cli.options import INPUT, MODEL, OutputOptions, TrainingOptions, flag
from cai_cli.records import Revision, Sample
from cai_cli.talk import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions, OutputOptions):
    model: Annotated[str, flag("Model", "The base language model to finetune."), MODEL]
    data: Annotated[
        list[str],
        flag("Data", "Revisions or samples, FILE[:proportion]; 0.5 takes half of its rows, 2 takes them twice. Repeatable."),
        INPUT,
    ]
    targets: Annotated[
        Literal["final", "all"], flag("Data", "Train on each chain's final revision, or on all of them (paper).")
    ] = "final"
    chat_template: Annotated[
        Path | None, flag("Model", "Jinja file to install; else a model without a template gets the transcript one."), INPUT
    ] = None


@dataclass(frozen=True, slots=True)
class Target:
    """One prompt and completion to train on."""

    id: str
    prompt: Conversation
    completion: Conversation


def run(options: Options) -> None:
    """Finetune the base model on revisions and helpful samples: SL-CAI (paper section 3).

    Example: cai sft --model base/ --data revisions.jsonl --data samples.jsonl --out sl-cai/
    """
    check_model(options.model)
    artifact = ModelArtifact("sft", options)
    if artifact.done:
        return
    targets = [target for source in options.data for target in read_targets(source, options)]

    from cai_cli.models.chat import install_template, stop_ids
    from cai_cli.models.load import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    install_template(tokenizer, options.chat_template)
    rows, rejected = tokenise(targets, tokenizer, stop_ids(tokenizer), options.max_length)
    if not rows:
        raise RunError(f"none of the {len(targets)} rows can be trained on", reasons_text(Counter(r.reason for r in rejected)))
    if options.dry_run:
        dry_run(rows, tokenizer, len(rejected))
        return
    artifact.start()
    if rejected:
        write_rows(options.out / "rejects.jsonl", [item.to_row() for item in rejected])
        say(f"{len(rejected)} rows rejected into {options.out / 'rejects.jsonl'}")

    from cai_cli.training.checkpoints import drop_unmarked_hf_checkpoints
    from cai_cli.training.facts import model_facts
    from cai_cli.training.hf_trainer import TrainingLog

    trainer = make_trainer(options, tokenizer, rows, artifact.checkpoints)
    checkpoint = drop_unmarked_hf_checkpoints(artifact.checkpoints)
    say(f"sft: {len(rows)} rows" + (f", continuing from {checkpoint.name}" if checkpoint else ""))
    with TrainingLog("sft", artifact.metrics_file) as log:
        result = log.train(trainer, checkpoint)

    def save(folder: Path) -> None:
        trainer.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    counts = dict(sorted(Counter(item.reason for item in rejected).items()))
    artifact.finish(
        save,
        counts={"in": len(targets), "out": len(rows), "rejected": counts},
        tokens=sum(len(row["input_ids"]) for row in rows),
        train_loss=result.training_loss,
        **model_facts(trainer.model, tokenizer),
    )


def read_targets(source: str, options: Options) -> Iterator[Target]:
    """The targets of one file, `FILE[:proportion]`, told apart by their fields; a malformed row stops with its place."""
    path, proportion = parse_weight(source)
    found = []
    for line, row in read_rows(Path(path)):
        try:
            found += revision_targets(row, options.targets) if "rounds" in row else sample_targets(row)
        except RecordError as error:
            raise error.at(f"{path}:{line}") from None
    if not found:
        raise UserError(f"{path}: no rows in it", "its stage may have rejected everything")
    whole = int(proportion)
    part = shuffled(found, options.seed, "proportion", path)[: round((proportion - whole) * len(found))]
    for times in range(whole):
        for target in found:
            yield target if times == 0 else Target(f"{target.id}#{times}", target.prompt, target.completion)
    yield from part


def revision_targets(row: dict[str, Any], targets: str) -> list[Target]:
    revision = Revision.from_row(row)
    if targets == "final":
        return [Target(revision.id, revision.prompt, revision.completion)]
    return [
        Target(f"{revision.id}/{number}", revision.prompt, [message("assistant", step.revision)])
        for number, step in enumerate(revision.rounds, start=1)
    ]


def sample_targets(row: dict[str, Any]) -> list[Target]:
    sample = Sample.from_row(row)
    return [Target(sample.id, sample.prompt, sample.completion)]


def tokenise(
    targets: list[Target], tokenizer: PreTrainedTokenizerBase, stops: list[int], max_length: int
) -> tuple[list[dict[str, list[int]]], list[Rejected]]:
    """Ids, and labels that are -100 on the prompt; rows that do not fit are rejected by name, never cut."""
    from cai_cli.models.chat import UnfitRow, encode_pair

    rows, rejected = [], []
    for target in targets:
        try:
            prompt_ids, completion_ids = encode_pair(tokenizer, target.prompt, target.completion, stops)
            length = len(prompt_ids) + len(completion_ids)
            if length > max_length:
                raise UnfitRow("too_long", f"{length} tokens, --max-length is {max_length}")
        except UnfitRow as error:
            rejected.append(Rejected(target.id, error.reason, error.detail))
            continue
        labels = [-100] * len(prompt_ids) + completion_ids
        rows.append({"input_ids": prompt_ids + completion_ids, "labels": labels})
    return rows, rejected


def make_trainer(options: Options, tokenizer: PreTrainedTokenizerBase, rows: list[dict], checkpoints: Path) -> Any:
    """TRL's SFTTrainer on rows that are tokenised and masked already."""
    import datasets
    import transformers
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from cai_cli.models.load import load_lm, training_dtype

    transformers.set_seed(options.seed)
    model = load_lm(options.model, options.device, training_dtype(options.dtype), tokenizer=tokenizer)
    config = SFTConfig(
        output_dir=str(checkpoints),
        seed=options.seed,
        data_seed=options.seed,
        learning_rate=options.learning_rate,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup_steps,
        num_train_epochs=options.num_train_epochs,
        per_device_train_batch_size=options.per_device_train_batch_size,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        max_grad_norm=options.max_grad_norm,
        bf16=options.bf16,
        gradient_checkpointing=options.gradient_checkpointing,
        use_cpu=model.device.type == "cpu",
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="group_by_length",
        logging_steps=options.logging_steps,
        save_steps=options.save_steps,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=model.device.type == "cuda",
    )
    return SFTTrainer(model=model, args=config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)


def dry_run(rows: list[dict[str, list[int]]], tokenizer: PreTrainedTokenizerBase, rejected: int) -> None:
    """Show the first row token by token: what is trained on, and what is only read."""
    row = rows[0]
    for index, label in zip(row["input_ids"], row["labels"], strict=True):
        mark = "loss" if label != -100 else "    "
        print(f"{mark}  {index:>7}  {tokenizer.decode([index])!r}")  # noqa: T201
    say(f"{len(rows)} rows, {sum(len(r['input_ids']) for r in rows)} tokens; {rejected} rows would be rejected")

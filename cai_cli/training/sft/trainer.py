"""TRL's SFTTrainer on rows that are tokenised, masked and perhaps packed already; full weights, LoRA or
QLoRA.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from torch.nn.functional import cross_entropy
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from cai_cli.console.options import schedule_of
from cai_cli.errors import RunError, UserError, first_line
from cai_cli.models.adapters import add_lora, trainable_state
from cai_cli.models.devices import pick_device, training_dtype
from cai_cli.models.finite import advice
from cai_cli.models.load import load_lm
from cai_cli.models.saved_configs import settle_configs
from cai_cli.training.parallel import to_load
from cai_cli.training.parts import put_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.sft.settings import Options

PROBE_TOKENS = 12
# Share of a loss that lower precision may change it by; an unknown scale changes it by much more
SAME_LOSS = 2e-2
# Largest change of a log-probability by what is packed in front; a leak changes them by much more
ISOLATED = 1e-3


class CheckedTrainer(SFTTrainer):
    """Raises RunError at the first loss that is not finite, logged or not."""

    def training_step(self, *args: Any, **settings: Any) -> Any:
        loss = super().training_step(*args, **settings)
        if not math.isfinite(number := loss.item()):
            step = self.state.global_step
            raise RunError(f"the loss is {number} at step {step}", advice(self.model, step, self.args.bf16))
        return loss


def open_model(options: Options, tokenizer: PreTrainedTokenizerBase) -> Any:
    """The model to train, with its adapters, checked for packing."""
    transformers.set_seed(options.output.seed)
    # By FSDP the Trainer takes apart what it is given, in the dtype that it has then
    device, _ = to_load(options.hardware.device, "auto")
    model = load_lm(
        options.model,
        device,
        training_dtype(options.hardware.dtype, options.training.bf16, options.adapters.lora),
        tokenizer=tokenizer,
        quantize=options.adapters.quantize,
    )
    settle_configs(model, tokenizer)
    if options.packing:
        check_isolation(model, options.model)
    if options.adapters.lora:
        model = add_lora(model, options.adapters, "CAUSAL_LM", options.output.seed)
    return model


def make_trainer(
    options: Options,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: dict[str, Dataset],
    checkpoints: Path,
) -> Any:
    """The trainer. `held_out`: datasets by kind, whose loss is measured at each checkpoint."""
    training, seed = options.training, options.output.seed
    config = SFTConfig(
        output_dir=str(checkpoints),
        seed=seed,
        data_seed=seed,
        learning_rate=training.learning_rate,
        lr_scheduler_type=schedule_of(training.lr_scheduler_type),
        warmup_steps=training.warmup_steps,
        num_train_epochs=training.num_train_epochs,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        max_grad_norm=training.max_grad_norm,
        bf16=training.bf16,
        gradient_checkpointing=training.gradient_checkpointing,
        use_cpu=pick_device(options.hardware.device).type == "cpu",
        max_length=None,
        packing=options.packing,
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="random" if options.packing else "group_by_length",
        logging_steps=training.logging_steps,
        save_steps=training.save_steps,
        eval_strategy="steps" if held_out else "no",
        eval_steps=training.save_steps,
        prediction_loss_only=True,
        loss_type="nll",  # TRL 1.12's own choice calls no head, which FSDP 2 waits for before it shares weights again
        router_aux_loss_coef=0.0,  # the loss is the completion's cross-entropy alone
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=pick_device(options.hardware.device).type == "cuda",
        ddp_find_unused_parameters=False,
    )
    before = (
        {name: weight.clone() for name, weight in trainable_state(model).items()}
        if options.adapters.quantize
        else {}
    )
    trainer = CheckedTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=held_out or None,
        processing_class=tokenizer,
    )
    if before:  # TRL rounds QLoRA's adapters to bfloat16, where small steps vanish
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        put_weights(model, [before])
    check_loss(trainer.model, options.model)
    return trainer


def check_loss(model: Any, name: str) -> None:
    """Raise UserError where TRL's loss is not the cross-entropy of the model's own logits.

    TRL applies the output layer to the backbone's states in pieces, and what an architecture does to logits
    after it (scaling, capping) only where it knows its name.
    """
    import torch

    ids = (
        torch.arange(PROBE_TOKENS, device=model.device)[None]
        * 7
        % model.get_input_embeddings().num_embeddings
    )
    row = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            ours = cross_entropy(model(**row, use_cache=False).logits[0, :-1].float(), ids[0, 1:]).item()
            theirs = model(**row, labels=ids, fused_lm_head=True).loss.item()
    except (AttributeError, TypeError, ValueError) as error:
        hint = "TRL, which trains it, does not know its parts: take another architecture"
        raise UserError(
            f"--model {name} ({type(model).__name__}): has no loss to train on: {first_line(error)}", hint
        ) from None
    finally:
        model.train(training)
    if not abs(ours - theirs) <= SAME_LOSS * max(1.0, abs(ours)) and math.isfinite(ours):
        told = f"--model {name} ({type(model).__name__}): TRL's loss is {theirs:.4g} where its logits give {ours:.4g}"
        raise UserError(
            told, "TRL, which trains it, does not know what it does to its logits: take another architecture"
        )


def check_isolation(model: Any, name: str) -> None:
    """Raise UserError where a packed row's log-probabilities change with the row in front of it.

    Rows are told apart by position_ids alone, without a mask or a cache, which depends on the attention
    implementation and is nothing that an architecture promises: recurrent layers and some attention kernels
    look past the border.
    """
    import torch

    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(PROBE_TOKENS, device=model.device) * 7 % vocabulary
    positions = torch.arange(PROBE_TOKENS, device=model.device).repeat(2)

    def behind(front: Any) -> Any:
        output = model(input_ids=torch.cat([front, ids])[None], position_ids=positions[None], use_cache=False)
        return torch.log_softmax(output.logits[0, PROBE_TOKENS:].float(), dim=-1)

    try:
        with torch.inference_mode():
            change = (behind(ids) - behind((ids + vocabulary // 2) % vocabulary)).abs().max().item()
    except TypeError:  # a model without position_ids has nothing to tell rows apart by
        change = float("inf")
    if change > ISOLATED:
        attention = getattr(model.config, "_attn_implementation", "its attention")
        hint = "leave --packing out, or take a model whose attention keeps packed rows apart"
        raise UserError(
            f"--packing: {name} ({type(model).__name__}, {attention}) sees past the border of packed rows",
            hint,
        )

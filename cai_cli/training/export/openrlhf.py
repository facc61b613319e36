"""PPO as OpenRLHF's flags: `python3 -m openrlhf.cli.train_ppo_ray --NAME VALUE ...`.

Read of its source: it takes the score where the reply's last token is, which of a reply cut off is no EOS, so
that its own reward model would read another number than ours; hence the reward is asked of `cai serve`. The
critic is made of the preference model, the KL penalty is a token's log ratio, the score lands on the last token,
and advantages are whitened over the batch, all as here.
"""

from __future__ import annotations

import math
import shlex
from typing import Any

from cai_cli.console.options import schedule_of
from cai_cli.training.export.carried import UNBOUNDED, Carried, Plan, alike, here, lost, there
from cai_cli.training.export.settings import Options

VERSION = "0.11.2"
MODULE = "openrlhf.cli.train_ppo_ray"
TRAINED = ("actor", "critic")


def carried(options: Options, plan: Plan) -> dict[str, Carried]:
    """What becomes of each of our options."""
    ppo, reward, models, track = options.ppo, options.reward, options.models, options.track
    adapters = models.adapters
    rank = adapters.lora_r if adapters.lora else 0
    attention = {"auto": "flash_attention_2"}.get(models.attn_implementation, models.attn_implementation)
    board = "tensorboard" in (options.report.report_to or [])
    warmup = warmup_ratio(options)
    return alike() | {
        "model": there("actor.model_name_or_path", value="$MODEL"),
        "chat_template_kwargs": here("refused: it has no such setting"),
        "pm": there("critic.model_name_or_path", value="$PM", remark="and of `cai serve`"),
        "prompts": there(
            "data.prompt_dataset",
            value="$HERE/prompts.jsonl",
            remark="the same prompts; shuffled by its own seed",
        ),
        "eval_prompts": Carried({"eval.dataset": "$HERE/eval.jsonl"} if options.eval_prompts else {}),
        "eval_steps": Carried({"eval.steps": track.eval_steps} if options.eval_prompts else {}),
        "save_steps": there("ckpt.save_steps", value=track.save_steps),
        "seed": there("train.seed", value=options.output.seed, remark="its draws are other ones"),
        "max_new_tokens": there("rollout.max_new_tokens", value=options.max_new_tokens),
        "temperature": there("rollout.temperature", "eval.temperature", value=options.temperature),
        "kl_coef": there("algo.kl.init_coef", value=reward.kl_coef),
        "rollout_batch_size": there("rollout.batch_size", value=ppo.rollout_batch_size),
        "num_ppo_epochs": there("train.max_epochs", value=ppo.num_ppo_epochs),
        "num_mini_batches": there(
            "train.batch_size", value=plan.mini_batch, remark="episodes of a mini-batch"
        ),
        "per_device_train_batch_size": there(
            "train.micro_batch_size",
            "rollout.micro_batch_size",
            value=plan.micro_batch,
            remark="the largest that divides a GPU's part",
        ),
        "learning_rate": there("actor.adam.lr", value=ppo.learning_rate),
        "value_learning_rate": there("critic.adam.lr", value=ppo.value_rate),
        "lr_scheduler_type": there(
            *(f"{one}.lr_scheduler" for one in TRAINED), value=schedule_of(ppo.lr_scheduler_type)
        ),
        "warmup_steps": there(
            *(f"{one}.lr_warmup_ratio" for one in TRAINED), value=warmup, remark="as a share of all updates"
        ),
        "critic_warmup_steps": there(
            "critic.freezing_steps",
            value=ppo.critic_warmup_steps - 1,
            remark="the policy's schedule is of all steps, ours of the remaining ones",
        ),
        "max_grad_norm": there(*(f"{one}.max_norm" for one in TRAINED), value=ppo.max_grad_norm),
        "clip_range": there("actor.eps_clip", value=ppo.clip_range),
        "value_clip_range": there("critic.value_clip", value=ppo.value_clip_range),
        "gamma": there("algo.advantage.gamma", value=ppo.gamma),
        "lam": there("algo.advantage.lambd", value=ppo.lam),
        "lora": there("ds.lora.rank", value=rank),
        "lora_r": here("see --lora"),
        "lora_alpha": there("ds.lora.alpha", value=adapters.lora_alpha),
        "lora_dropout": there("ds.lora.dropout", value=adapters.lora_dropout),
        "quantize": (
            lost("it has 4 bits alone")
            if adapters.quantize == "8bit"
            else there("ds.load_in_4bit", value=adapters.quantize == "4bit")
        ),
        "dtype": there(
            "ds.param_dtype", value="bf16", remark="weights in bfloat16, the optimiser's in float32"
        ),
        "gradient_checkpointing": there(
            "actor.gradient_checkpointing_enable", value=models.gradient_checkpointing
        ),
        "attn_implementation": there("ds.attn_implementation", value=attention),
        "gpu_memory_utilization": there("vllm.gpu_memory_utilization", value=options.gpu_memory_utilization),
        "report_to": Carried(
            {"logger.tensorboard_dir": "$OUT/tensorboard"} if board else {},
            "wandb: launch.sh --logger.wandb.key KEY",
        ),
    }


def fixed(options: Options, plan: Plan, head: str) -> dict[str, Any]:
    """The engine's settings that make its PPO ours, and those of the cluster. `head`: name of the PM's."""
    cluster = options.cluster
    found: dict[str, Any] = {
        "reward.remote_url": "$REWARD_URL",
        "reward.clip_range": (-UNBOUNDED, UNBOUNDED),
        "ds.value_head_prefix": head,
        "data.input_key": "prompt",
        "data.label_key": "label",
        "data.apply_chat_template": True,
        "data.max_len": plan.longest + options.max_new_tokens,
        "algo.advantage.estimator": "gae",
        "algo.kl.estimator": "k1",
        "rollout.n_samples_per_prompt": 1,
        "rollout.top_p": 1.0,
        "eval.n_samples_per_prompt": 1,
        "train.num_episodes": 1,
        "ckpt.output_dir": "$OUT/policy",
        "ckpt.path": "$OUT/checkpoints",
        "ckpt.best_metric_key": "none",
        "ckpt.load_enable": True,
        "ds.zero_stage": 3,
        "ds.enable_sleep": True,
        "train.colocate_all": True,
        "vllm.num_engines": plan.samplers,
        "vllm.tensor_parallel_size": cluster.tensor_parallel_size,
        "vllm.enable_sleep": True,
    }
    for one in TRAINED:
        found |= {f"{one}.adam.betas": (0.9, 0.95), f"{one}.adam.eps": 1e-5, f"{one}.adam.weight_decay": 0.0}
    for one in (*TRAINED, "ref"):
        found |= {f"{one}.num_nodes": cluster.num_nodes, f"{one}.num_gpus_per_node": cluster.gpus_per_node}
    return found


def warmup_ratio(options: Options) -> float:
    """The share of all updates that gives as many of warm-up as ours: the engine rounds their product up."""
    ppo = options.ppo
    updates = ppo.num_ppo_epochs * ppo.num_mini_batches
    ratio = min(ppo.warmup_steps / ppo.steps, 1.0)
    while math.ceil(ppo.steps * updates * ratio) > ppo.warmup_steps * updates:
        ratio = math.nextafter(ratio, 0.0)
    return ratio


def flags(settings: dict[str, Any]) -> list[str]:
    """One line of shell for each: what begins with $ is a variable of the script, True is a flag alone."""
    lines = []
    for name, value in settings.items():
        if value is False:
            continue
        words = [] if value is True else value if isinstance(value, tuple) else [value]
        lines.append(" ".join([f"--{name}", *(word(each) for each in words)]))
    return lines


def word(value: Any) -> str:
    if isinstance(value, str) and value.startswith("$"):
        return f'"{value}"'
    return shlex.quote(str(value))

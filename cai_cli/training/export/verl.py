"""PPO as verl's settings: a Hydra file on top of its `ppo_trainer`, and the reward manager that asks `cai serve`.

Read of its source: a reward model of its own is sent prompt and reply in the template anew, without the EOS on
which our score is read; a custom reward function gets the reply without the token that says whether it ended.
So the reward comes from a reward manager in a file, which has the tokens.
"""

from __future__ import annotations

from typing import Any

from cai_cli.models.templates import template_kwargs
from cai_cli.training.export.carried import Carried, Plan, alike, here, lost, there
from cai_cli.training.export.settings import Options

VERSION = "0.9.1"
MODULE = "verl.trainer.main_ppo"
POLICY, VALUE, ROLLOUT = "actor_rollout_ref.actor", "critic", "actor_rollout_ref.rollout"
NEW = ("reward.reward_kwargs.url",)  # of our reward manager: verl has no such setting
NO_DUAL_CLIP = 1e6  # of the ratio where an advantage is negative: ours has none, verl's cannot be left out

REWARD_MANAGER = '''"""verl's reward of this export: `cai serve` scores each reply, read to its closing EOS."""

import asyncio
import json
import time
import urllib.request

from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase

TRIES, PATIENCE = 6, 600


class PreferenceModelReward(RewardManagerBase):
    def __init__(self, config, tokenizer, compute_score=None, **others):
        super().__init__(config, tokenizer, compute_score)
        self.url = config.reward.reward_kwargs.url.split(",")
        self.asked = 0

    async def run_single(self, data):
        item = data[-1:][0]
        mask = item.batch["attention_mask"].bool()
        prompts, responses = item.batch["prompts"], item.batch["responses"]
        prompt = prompts[mask[: len(prompts)]].tolist()
        reply = responses[mask[len(prompts) :]].tolist()
        asked = {
            "query": [self.tokenizer.decode(prompt + reply)],
            "prompts": [self.tokenizer.decode(prompt)],
            "labels": [item.non_tensor_batch["reward_model"]["ground_truth"]],
        }
        answer = await asyncio.to_thread(self.ask, json.dumps(asked).encode())
        score = answer["scores"][0]
        return {"reward_score": answer["rewards"][0], "reward_extra_info": {"pm_score": score}}

    def ask(self, body):
        """The server's answer; one that cannot be reached is asked again, one that refuses is not."""
        for number in range(TRIES):
            self.asked += 1
            url = self.url[self.asked % len(self.url)]
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                raise RuntimeError(f"{url}: {error.read().decode()}") from None
            except OSError:
                if number == TRIES - 1:
                    raise
                time.sleep(2**number)
'''


def carried(options: Options, plan: Plan) -> dict[str, Carried]:
    """What becomes of each of our options."""
    ppo, reward, models, track = options.ppo, options.reward, options.models, options.track
    adapters = models.adapters
    both = (POLICY, VALUE)
    held = ("actor_rollout_ref.model", "critic.model")
    rank = adapters.lora_r if adapters.lora else 0
    constant = ppo.lr_scheduler_type == "constant"
    bent = "its FSDP engine has no linear one: cosine, down to 0 over the same steps"
    warmup = ppo.critic_warmup_steps + 1 if ppo.critic_warmup_steps else 0
    return alike() | {
        "model": there("actor_rollout_ref.model.path", value="$MODEL"),
        "pm": there("critic.model.path", value="$PM", remark="and of `cai serve`"),
        "prompts": there("data.train_files", value="$HERE/prompts.parquet", remark="in our order"),
        "eval_prompts": there(
            "data.val_files",
            value="$HERE/eval.parquet" if options.eval_prompts else "$HERE/prompts.parquet",
            remark="" if options.eval_prompts else "it wants a file; it is not evaluated on",
        ),
        "eval_steps": there("trainer.test_freq", value=track.eval_steps if options.eval_prompts else -1),
        "save_steps": there("trainer.save_freq", value=track.save_steps),
        "seed": there(
            "data.seed", f"{ROLLOUT}.seed", value=options.output.seed, remark="its draws are other ones"
        ),
        "max_new_tokens": there("data.max_response_length", value=options.max_new_tokens),
        "temperature": there(
            f"{ROLLOUT}.temperature", f"{ROLLOUT}.val_kwargs.temperature", value=options.temperature
        ),
        "chat_template_kwargs": prompt_words(options),
        "kl_coef": there("algorithm.kl_ctrl.kl_coef", value=reward.kl_coef),
        "rollout_batch_size": there("data.train_batch_size", value=ppo.rollout_batch_size),
        "num_ppo_epochs": there(*(f"{one}.ppo_epochs" for one in both), value=ppo.num_ppo_epochs),
        "num_mini_batches": there(
            *(f"{one}.ppo_mini_batch_size" for one in both),
            value=plan.mini_batch,
            remark="episodes of a mini-batch",
        ),
        "per_device_train_batch_size": there(
            *(f"{one}.ppo_micro_batch_size_per_gpu" for one in both),
            f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
            value=plan.micro_batch,
            remark="the largest that divides a GPU's part",
        ),
        "learning_rate": there(f"{POLICY}.optim.lr", value=ppo.learning_rate),
        "value_learning_rate": there(f"{VALUE}.optim.lr", value=ppo.value_rate),
        "lr_scheduler_type": there(
            *(f"{one}.optim.lr_scheduler_type" for one in both),
            value="constant" if constant else "cosine",
            remark=bent if ppo.lr_scheduler_type == "linear" else "",
        ),
        "warmup_steps": there(*(f"{one}.optim.lr_warmup_steps" for one in both), value=ppo.warmup_steps),
        "critic_warmup_steps": there("trainer.critic_warmup", value=warmup, remark="it counts from 1"),
        "max_grad_norm": there(
            *(f"{one}.{name}" for one in both for name in ("grad_clip", "optim.clip_grad")),
            value=ppo.max_grad_norm or NO_DUAL_CLIP,
            remark="" if ppo.max_grad_norm else "off is a bound that is not reached",
        ),
        "clip_range": there(
            *(f"{POLICY}.{name}" for name in ("clip_ratio", "clip_ratio_low", "clip_ratio_high")),
            value=ppo.clip_range,
        ),
        "value_clip_range": there("critic.cliprange_value", value=ppo.value_clip_range),
        "gamma": there("algorithm.gamma", value=ppo.gamma),
        "lam": there("algorithm.lam", value=ppo.lam),
        "lora": there(*(f"{one}.lora_rank" for one in held), value=rank),
        "lora_r": here("see --lora"),
        "lora_alpha": there(*(f"{one}.lora_alpha" for one in held), value=adapters.lora_alpha),
        "lora_dropout": here("is 0 there, as here"),
        "quantize": lost("it trains in full precision or bfloat16 alone"),
        "dtype": lost("weights in float32, computed in bfloat16"),
        "gradient_checkpointing": there(
            *(f"{one}.enable_gradient_checkpointing" for one in held), value=models.gradient_checkpointing
        ),
        "attn_implementation": lost("its engine takes flash_attention_2"),
        "gpu_memory_utilization": there(
            f"{ROLLOUT}.gpu_memory_utilization", value=options.gpu_memory_utilization
        ),
        "report_to": there("trainer.logger", value=["console", *(options.report.report_to or [])]),
    }


def prompt_words(options: Options) -> Carried:
    """What the template is told besides the conversation."""
    return there("data.apply_chat_template_kwargs", value=template_kwargs(options.chat_template_kwargs))


def fixed(options: Options, plan: Plan) -> dict[str, Any]:
    """The engine's settings that make its PPO ours, and those of the cluster."""
    cluster = options.cluster
    found: dict[str, Any] = {
        "algorithm.adv_estimator": "gae",
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_penalty": "kl",
        "algorithm.kl_ctrl.type": "fixed",
        "data.shuffle": False,
        "data.validation_shuffle": False,
        "data.max_prompt_length": plan.longest,
        "data.truncation": "error",
        f"{POLICY}.use_kl_loss": False,
        f"{POLICY}.entropy_coeff": 0,
        f"{POLICY}.loss_agg_mode": "token-mean",
        f"{POLICY}.clip_ratio_c": NO_DUAL_CLIP,
        f"{POLICY}.shuffle": True,
        f"{ROLLOUT}.name": "vllm",
        f"{ROLLOUT}.n": 1,
        f"{ROLLOUT}.top_p": 1.0,
        f"{ROLLOUT}.top_k": -1,
        f"{ROLLOUT}.tensor_model_parallel_size": cluster.tensor_parallel_size,
        f"{ROLLOUT}.val_kwargs.do_sample": True,
        "reward.reward_manager.source": "importlib",
        "reward.reward_manager.name": "PreferenceModelReward",
        "reward.reward_manager.module.path": "$HERE/reward.py",
        "reward.reward_kwargs.url": "$REWARD_URL",
        "trainer.nnodes": cluster.num_nodes,
        "trainer.n_gpus_per_node": cluster.gpus_per_node,
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": options.ppo.steps,
        "trainer.val_before_train": bool(options.eval_prompts),
        "trainer.default_local_dir": "$OUT/checkpoints",
        "trainer.project_name": "cai",
        "trainer.experiment_name": "ppo",
    }
    for one in (POLICY, VALUE):
        found |= {f"{one}.optim.betas": [0.9, 0.95], f"{one}.optim.weight_decay": 0.0}
        found[f"{one}.optim.override_optimizer_config"] = {"eps": 1e-5}
    return found


def overrides(settings: dict[str, Any]) -> list[str]:
    """Those whose value is a variable of launch.sh, as Hydra takes them on the command line.

    The file cannot hold them: what reads it may run on a machine that has not the variables.
    """
    return [
        f"\"{'+' if name in NEW else ''}{name}='{value}'\""
        for name, value in settings.items()
        if is_variable(value)
    ]


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """The others, names with dots as mappings within each other."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if is_variable(value):
            continue
        *outer, last = name.split(".")
        place = found
        for each in outer:
            place = place.setdefault(each, {})
        place[last] = value
    return found


def is_variable(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("$")

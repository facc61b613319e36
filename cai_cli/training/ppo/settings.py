"""The flags of `cai ppo`, in groups: what a reply is worth, how policy and value learn from it, what is kept
and shown.

Defaults are for raw preference-model scores, whatever their scale: advantages are whitened, so the scale does
not reach the policy's step size; the KL penalty (0.05 a token) and the missing-EOS penalty (1) are small
beside the usual spread of scores (about 1 to 3, logits of a preference); the clip of the value is in units of
the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from cai_cli.console.options import (
    INPUT,
    MODEL,
    NOTED,
    RUNTIME,
    AdapterOptions,
    ChatTemplateKwargs,
    DeviceOptions,
    GradientCheckpointing,
    Needs,
    OutputOptions,
    ReportOptions,
    SaveSteps,
    Takes,
    flag,
)

MOST_MOVE = 0.2  # of the KL coefficient, in --kl-horizon episodes


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """How the four models are held."""

    adapters: AdapterOptions
    hardware: DeviceOptions
    value_device: Annotated[
        str | None,
        flag(
            "Model",
            "Hold preference model and value function in a process of their own on this device (cuda:1, cpu), which works "
            "at the same time as the policy; on one CPU each has half the threads.",
        ),
        RUNTIME,
    ] = None
    bf16: Annotated[
        bool,
        flag(
            "Model",
            "Mixed precision in bfloat16; weights that learn stay in float32, the frozen base of --lora is held in bfloat16 "
            "(--dtype says otherwise).",
            "--bf16",
        ),
        NOTED,
    ] = False
    frozen_dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        flag("Model", "Of the frozen reference and preference model in full fine-tuning; auto: --dtype."),
        NOTED,
    ] = "auto"
    attn_implementation: Annotated[
        Literal["auto", "eager", "sdpa", "flash_attention_2"],
        flag(
            "Model", "auto: eager on a CPU where rows are short (faster there), else the model's own choice."
        ),
        NOTED,
    ] = "auto"
    gradient_checkpointing: GradientCheckpointing = False


@dataclass(frozen=True, kw_only=True)
class RewardOptions:
    """From the preference model's score to the reward of a reply."""

    NEEDS: ClassVar[Needs] = {"kl_horizon": ("target_kl",)}

    kl_coef: Annotated[
        float, flag("Reward", "Weight of the per-token KL penalty (paper: 0.001).", min=0.0)
    ] = 0.05
    target_kl: Annotated[
        float | None,
        flag(
            "Reward", "Adapt the coefficient so that the KL a reply stays near this (nats); else it is fixed."
        ),
    ] = None
    kl_horizon: Annotated[int, flag("Reward", "Episodes over which --target-kl adapts.", min=1)] = 10_000
    max_kl: Annotated[
        float,
        flag(
            "Reward", "Stop when the mean KL a reply exceeds this (nats), with the last good policy.", min=0.0
        ),
    ] = 50.0
    normalise_scores: Annotated[
        bool,
        flag(
            "Reward",
            "Shift and scale scores by the mean and deviation kept in the PM's cai.json (paper: raw).",
            "--normalise-scores",
        ),
    ] = False
    score_clip: Annotated[
        float | None,
        flag("Reward", "Clip scores to ± this, after any normalisation (not in the paper).", min=0.0),
    ] = None
    missing_eos_penalty: Annotated[
        float, flag("Reward", "Taken off the score of a reply cut off by length.", min=0.0)
    ] = 1.0
    whiten_rewards: Annotated[
        bool, flag("Reward", "Scale token rewards to variance 1 over the batch.", "--whiten-rewards")
    ] = False


@dataclass(frozen=True, kw_only=True)
class PPOOptions:
    """The loop and its two losses."""

    steps: Annotated[int, flag("Optimisation", "Rollouts, each followed by an update.", min=1)] = 200
    rollout_batch_size: Annotated[
        int, flag("Optimisation", "Episodes a step, of all processes together.", min=1)
    ] = 128
    num_ppo_epochs: Annotated[
        int, flag("Optimisation", "Passes over each rollout (paper's K: 1 to 4).", min=1)
    ] = 2
    num_mini_batches: Annotated[int, flag("Optimisation", "Optimiser steps a pass.", min=1)] = 2
    per_device_train_batch_size: Annotated[
        int,
        flag(
            "Optimisation",
            "Most episodes per forward and backward pass; where one holds all of a step, the value makes one less.",
            min=1,
        ),
    ] = 32
    learning_rate: Annotated[float, flag("Optimisation", "Of the policy, at its peak.", min=0.0)] = 1e-6
    value_learning_rate: Annotated[
        float | None, flag("Optimisation", "Of the value function; --learning-rate if not given.", min=0.0)
    ] = None
    lr_scheduler_type: Annotated[
        Literal["linear", "constant", "cosine"],
        flag("Optimisation", "Learning-rate schedule after the warm-up."),
    ] = "linear"
    warmup_steps: Annotated[int, flag("Optimisation", "Steps of linear learning-rate warm-up.", min=0)] = 0
    critic_warmup_steps: Annotated[
        int, flag("Optimisation", "First steps in which the value function learns alone.", min=0)
    ] = 0
    max_grad_norm: Annotated[
        float, flag("Optimisation", "Gradient clipping, policy and value apart; 0: off.", min=0.0)
    ] = 1.0
    clip_range: Annotated[float, flag("PPO", "Clip range of the policy ratio (paper: 0.2).", min=0.0)] = 0.2
    value_clip_range: Annotated[
        float, flag("PPO", "Clip range of the value, in units of the score.", min=0.0)
    ] = 0.2
    value_coef: Annotated[float, flag("PPO", "Weight of the value loss.", min=0.0)] = 0.1
    gamma: Annotated[float, flag("PPO", "Discount (paper: 1).", min=0.0, max=1.0)] = 1.0
    lam: Annotated[float, flag("PPO", "GAE's lambda.", min=0.0, max=1.0)] = 0.95

    @property
    def value_rate(self) -> float:
        """The value function's learning rate."""
        return self.learning_rate if self.value_learning_rate is None else self.value_learning_rate


@dataclass(frozen=True, kw_only=True)
class TrackOptions:
    """What is kept and shown of a run."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(
        ("eval_steps", "best_max_kl"), ("eval_prompts", "load_best_model_at_end", "gold_pm")
    )

    eval_steps: Annotated[int, flag("Output", "Steps between evaluations on --eval-prompts.", min=1)] = 10
    save_steps: SaveSteps = 20
    sample_steps: Annotated[
        int, flag("Output", "Steps between sample generations in samples.jsonl; 0: none.", min=0)
    ] = 10
    load_best_model_at_end: Annotated[
        bool,
        flag(
            "Output",
            "Save the policy with the best held-out score, not the last one.",
            "--load-best-model-at-end",
        ),
    ] = False
    best_max_kl: Annotated[
        float | None,
        flag("Output", "KL budget of the best policy (nats a reply); --max-kl if not given.", min=0.0),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Options:
    NEEDS: ClassVar[Needs] = {"gpu_memory_utilization": ("engine=vllm",)}

    output: OutputOptions
    models: ModelOptions
    reward: RewardOptions
    ppo: PPOOptions
    report: ReportOptions
    track: TrackOptions
    model: Annotated[str, flag("Model", "SL-CAI: where the policy starts, and the reference."), MODEL]
    pm: Annotated[str, flag("Model", "The preference model; the value function starts from it too."), MODEL]
    gold_pm: Annotated[
        str | None,
        flag(
            "Model",
            "Another PM that only measures: the run stops when its score falls while that of --pm rises.",
        ),
        MODEL,
    ] = None
    prompts: Annotated[
        list[str],
        flag("Data", "Prompts (as for `cai sample`), FILE[:proportion of the batch]. Repeatable."),
        INPUT,
        Takes.STDIN,
        Takes.WEIGHT,
    ]
    eval_prompts: Annotated[
        list[str] | None,
        flag("Data", "Held-out prompts, sampled and scored every --eval-steps. Repeatable."),
        INPUT,
        Takes.STDIN,
    ] = None
    max_reject_rate: Annotated[
        float,
        flag("Data", "Exit 1 when a larger share of the prompts does not fit.", min=0.0, max=1.0),
        RUNTIME,
    ] = 0.5
    max_new_tokens: Annotated[int, flag("Generation", "Longest reply (paper: 128).", min=1)] = 128
    temperature: Annotated[float, flag("Generation", "Sampling temperature (paper: 1).", min=0.01)] = 1.0
    chat_template_kwargs: ChatTemplateKwargs = None
    batch_size: Annotated[
        int, flag("Generation", "Requests per forward pass; does not change texts.", min=1), RUNTIME
    ] = 128
    engine: Annotated[
        Literal["transformers", "vllm"],
        flag(
            "Generation",
            "What samples; vllm (extra cai-cli[vllm]) holds a copy of the policy and takes its weights before each "
            "rollout, and the policy computes the log-probabilities again.",
        ),
        NOTED,
    ] = "transformers"
    gpu_memory_utilization: Annotated[
        float, flag("Generation", "vllm: share of the GPU's memory to take.", min=0.01, max=1.0), RUNTIME
    ] = 0.3

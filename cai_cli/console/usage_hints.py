"""The next step for a command line that the parser refuses: which flag or command somebody meant who knows
other tools.

In: the parser's error and the words that were typed; out: one sentence. Names of other libraries stand in two
tables, ours first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any

# Our flag, or a whole way to write it -> names that other tools have for it. The first that the command has
# is meant.
FLAGS = {
    "--learning-rate": "lr rate peak-lr policy-lr actor-lr learning-rate-policy",
    "--value-learning-rate": "critic-lr value-lr vf-lr critic-learning-rate",
    "--num-train-epochs": "epochs num-epochs n-epochs epoch max-epochs train-epochs max-steps num-steps steps",
    "--steps": "max-steps num-steps total-steps epochs num-epochs num-train-epochs iterations total-episodes num-iterations",
    "--num-ppo-epochs": "ppo-epochs update-epochs inner-epochs",
    "--num-mini-batches": "mini-batches minibatches mini-batch-size",
    "--rollout-batch-size": "rollouts episodes episodes-per-step",
    "--per-device-train-batch-size": "batch-size train-batch-size micro-batch-size per-device-batch-size bs batch b",
    "--batch-size": "per-device-train-batch-size per-device-eval-batch-size eval-batch-size bs batch b",
    "--gradient-accumulation-steps": "gradient-accumulation grad-accum grad-accumulation accumulation-steps",
    "--lr-scheduler-type": "lr-scheduler scheduler schedule lr-schedule scheduler-type",
    "--warmup-steps": "warmup warmup-ratio num-warmup-steps lr-warmup-steps",
    "--max-grad-norm": "grad-clip clip-grad gradient-clipping gradient-clip clip-grad-norm",
    "--max-length": "max-seq-length max-seq-len seq-len sequence-length block-size cutoff-len context-length max-tokens "
    "max-new-tokens max-len max-prompt-length",
    "--max-new-tokens": "max-length max-tokens max-completion-length response-length max-len max-response-length n-tokens "
    "max-seq-length completion-length",
    "--bf16": "fp16 half amp mixed-precision precision",
    "--dtype": "torch-dtype precision fp16 half bf16 weights-dtype",
    "--gradient-checkpointing": "activation-checkpointing checkpointing",
    "--save-steps": "checkpoint-steps save-every save-interval save-freq checkpointing-steps",
    "--logging-steps": "log-every log-interval log-steps",
    "--eval-steps": "eval-every eval-interval eval-freq evaluation-steps",
    "--lora": "use-lora use-peft peft adapter adapters",
    "--lora-r": "lora-rank rank r lora-dim",
    "--lora --quantize 4bit": "load-in-4bit qlora 4bit use-4bit int4 bits",
    "--lora --quantize 8bit": "load-in-8bit 8bit use-8bit int8",
    "--model": "model-name model-name-or-path model-path base-model pretrained pretrained-model checkpoint policy actor lm m "
    "model-id sft-model ref-model reference-model generator name-or-path",
    "--pm": "reward-model rm reward-model-path reward-model-name-or-path preference-model model reward",
    "--gold-pm": "gold-model gold-rm gold",
    "--feedback-model": "judge judge-model labeler labeller annotator teacher critic-model feedback reward-model",
    "--tokenizer-from": "tokenizer tokenizer-name tokenizer-path",
    "--prompts": "data dataset dataset-name train-file input inputs input-file file prompt prompt-file train-data i questions",
    "--prompt": "prompts text question message ask query input p i",
    "--data": "dataset dataset-name train-file input inputs input-file file train-data training-data i samples revisions prompts",
    "--comparisons": "data dataset dataset-name train-file input inputs input-file file train-data preferences pairs i",
    "--max-pairs": "limit max-samples max-examples max-rows",
    "--posts": "data dataset input input-file file dump i",
    "--eval-prompts": "eval-data eval-file eval-dataset validation-file test-prompts validation-prompts",
    "--pairs": "samples responses replies completions comparisons",
    "--held-out": "test-size eval-split val-split validation-split val-size eval-ratio test-split heldout validation-size",
    "--constitution": "principles constitution-file constitution-path rules",
    "--parts": "splits ratios ratio split fractions shares proportions",
    "--split": "parts splits ratios",
    "--columns": "column fields field-map mapping column-mapping",
    "--to": "as output-format target type",
    "--num-samples": "n num-return-sequences num-generations best-of samples-per-prompt num-replies k num-completions",
    "--rounds": "num-rounds revisions num-revisions iterations n-rounds steps",
    "--few-shot": "num-fewshot shots fewshot n-shot examples demonstrations",
    "--cot": "chain-of-thought think reasoning",
    "--temperature 0": "greedy no-sample deterministic",
    "--temperature": "temp t sampling-temperature",
    "--kl-coef": "kl beta init-kl-coef kl-penalty kl-coeff kl-coefficient init-kl-coeff kl-weight",
    "--target-kl": "kl-target target",
    "--clip-range": "cliprange clip-epsilon epsilon clip clip-ratio eps-clip",
    "--value-clip-range": "cliprange-value vf-clip value-clip",
    "--value-coef": "vf-coef value-loss-coef critic-coef vf-coeff",
    "--lam": "gae-lambda lambda lambd gae",
    "--report-to": "logger tracker log-with",
    "--report-to wandb": "wandb use-wandb wandb-project",
    "--report-to tensorboard": "tensorboard use-tensorboard tb",
    "--out": "output output-dir output-file output-path o save-dir save-path out-dir outfile outdir save destination result",
    "--limit": "max-samples num-examples max-rows max-examples max-train-samples num-prompts max-prompts l head take first",
    "--seed": "random-seed random-state",
    "--device": "gpu gpus cuda cpu device-map devices mps",
    "--if-changed restart": "overwrite overwrite-output-dir force f overwrite-output clobber",
    "--dry-run": "dryrun preview n test check",
    "--config": "config-file configuration cfg c yaml args-file",
    "--json": "format output-format as-json",
    "--version": "v ver",
}
# Names of other tools for what is no flag of ours.
WITHOUT = {
    "top-p top-k do-sample min-p typical-p": "texts are sampled at --temperature alone, as in the paper: leave it out",
    "resume resume-from-checkpoint continue resume-from": "the same command again carries on where it was cut off: leave it out",
    "weight-decay optim optimizer adam-beta1 adam-beta2": "AdamW without weight decay is all there is: leave it out",
    "trust-remote-code": "code in a model's directory is never run: leave it out",
    "num-processes nproc nproc-per-node num-gpus n-gpus": "several GPUs: `torchrun --nproc-per-node N -m cai_cli ...` starts it",
    "num-workers workers dataloader-num-workers threads num-proc": "threads are counted by OMP_NUM_THREADS: leave it out",
    "deepspeed fsdp": "trainers take FSDP 2 and (not sft) DeepSpeed from a launch file (scripts/accelerate): leave it out",
    "hf-token token auth-token api-key": "a token is taken from the variable HF_TOKEN, or from `hf auth login`: leave it out",
    "push-to-hub hub-model-id": "`cai push DIR org/name` uploads what is finished: leave it out",
    "verbose quiet v q log-level": "what matters is said on stderr: leave it out, or send stderr to a file",
}
# Our command -> what other tools, or people, call it.
COMMANDS = {
    "`cai revise`": "critique revision revisions critique-revise critique-revision rewrite sl self-critique",
    "`cai sample`": "generate gen infer inference reply complete completions rollout predict responses",
    "`cai sft`": "finetune fine-tune train-sft sl-cai supervised slcai instruct tune train-sl",
    "`cai label`": "feedback judge compare annotate ai-feedback labels preferences rlaif-label rank",
    "`cai pmp`": "pretrain pretrain-pm pm-pretrain preference-pretraining",
    "`cai train-pm`": "rm reward reward-model train-rm pm preference-model trainpm reward-modeling reward-modelling",
    "`cai ppo`": "rl rlhf rlaif rl-cai rlcai train-rl reinforce grpo train-policy",
    "`cai sft`, `cai train-pm` or `cai ppo`": "train training fit learn trainer",
    "`cai import`": "convert prepare load preprocess download dataset ingest fetch data",
    "`cai split`": "divide partition train-test-split",
    "`cai merge`": "join concat concatenate combine gather",
    "`cai inspect`": "show view head print cat look browse",
    "`cai lineage`": "provenance history trace graph",
    "`cai chat`": "talk ask converse repl console interactive try-out",
    "`cai push`": "upload publish hub push-to-hub share",
    "`cai evaluate`": "eval test benchmark measure metrics evaluation evals",
    "`cai evaluate hhh`": "hhh",
    "`cai demo`": "quickstart start example tutorial run all pipeline try init new",
    "`cai env`": "version info doctor environment system bug-report",
    "`cai constitution show`": "principles constitutions rules",
    "`cai --help`": "help commands usage man",
}
ELSEWHERE = {
    "dpo": "there is no DPO here: `cai ppo` trains the policy, and TRL's DPOTrainer reads the file of `cai label` as it is",
    "orpo": "there is no ORPO here: `cai ppo` trains the policy, and TRL's trainers read the file of `cai label` as it is",
    "kto": "there is no KTO here: `cai ppo` trains the policy, and TRL's trainers read the file of `cai label` as it is",
    "serve": "nothing is served here: vLLM and others take the model directories as they are",
}


def line_for(error: Any, words: list[str]) -> tuple[str, str]:
    """What is wrong, and what to do about it; `words` are what was typed behind `cai`."""
    problem = " ".join(error.format_message().split()).removesuffix(".").replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if context is None:
        return problem, "see `cai --help`"
    meant = ""
    if problem.startswith("No such option"):
        name = as_typed(error.option_name, words)
        meant = meant_flag(context, name)
        problem = f"No such option: {name}" if meant else problem
    elif match := re.match(r"No such command '([^']*)'", problem):
        meant = meant_command(context, match[1])
        problem = match[0] if meant else problem
    elif match := re.match(r"Got unexpected extra argument\S* \((.*)\)", problem):
        meant = meant_extra(context, match[1].split(" ")[0], words)
    elif match := re.search(r"'([^']*)' is not one of 'hh-rlhf'", problem):
        meant = meant_format(match[1], words)
    elif problem.startswith("Missing") and (example := example_of(context.command)):
        meant = f"for example `{example}`"
    return problem, "; ".join(filter(None, (meant, f"see `{context.command_path} --help`")))


def as_typed(name: str, words: list[str]) -> str:
    """The whole word behind an unknown flag: `-model` is read as -m."""
    short = (word for word in words if word.startswith(name) and not word.startswith("--"))
    return name if name.startswith("--") else next(short, name)


def flags_of(command: Any) -> dict[str, Any]:
    """Spelling of a flag -> the parameter behind it."""
    return {
        spelling: parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def meant_flag(context: Any, name: str) -> str:
    """Which flag of the command, or of another one, an unknown flag stands for."""
    flags = flags_of(context.command)
    plain = name.lstrip("-").partition("=")[0].replace("_", "-").lower()
    if f"--{plain}" in flags:
        return f"write `--{plain}`"
    for ours, theirs in FLAGS.items():
        if plain in theirs.split() and ours.split()[0] in flags:
            return f"here it is `{ours}`"
    for theirs, told in WITHOUT.items():
        if plain in theirs.split():
            return told
    root = context.find_root().command
    having = [path for path, command in commands_of(root) if f"--{plain}" in flags_of(command) and path]
    if context.command is root and having:
        return f"flags come behind the command: `cai {having[0]} --{plain} ...`"
    return f"`cai {'`, `cai '.join(having[:3])}` ha{'ve' if having[1:] else 's'} it" if having else ""


def commands_of(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(words behind `cai`, command) of a command and all below it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from commands_of(child, f"{path} {name}".strip())


def meant_command(context: Any, name: str) -> str:
    """Which command an unknown one stands for."""
    plain = name.replace("_", "-").lower()
    if plain in context.command.commands:
        return f"write `{context.command_path} {plain}`"
    if context.command is not context.find_root().command:
        return f"it takes {', '.join(context.command.commands)}"
    if plain in ELSEWHERE:
        return ELSEWHERE[plain]
    return next((f"{ours} does that" for ours, theirs in COMMANDS.items() if plain in theirs.split()), "")


def meant_extra(context: Any, extra: str, words: list[str]) -> str:
    """How a value that belongs to no flag is to be written."""
    flags = flags_of(context.command)
    place = words.index(extra) if extra in words else 0
    before = next(
        (
            word
            for word in reversed(words[:place])
            if word.startswith("-") and word.partition("=")[0] in flags
        ),
        None,
    )
    parameter = flags[before.partition("=")[0]] if before else None
    if parameter is not None and not parameter.is_flag:
        named = (before or "").partition("=")[0]
        if parameter.multiple:
            values = takewhile(lambda word: not word.startswith("-"), words[words.index(before or "") + 1 :])
            return f"repeat the flag for each: {' '.join(f'{named} {value}' for value in values)}"
        if words[place - 1] != before:
            return f"{named} takes one value: put quotes around one that has spaces"
    inputs = [name for name in ("--prompts", "--data", "--comparisons", "--posts") if name in flags]
    if inputs:
        return f"a file goes behind its flag: {inputs[0]} {extra}"
    taken = [
        str(parameter.name).upper()
        for parameter in context.command.params
        if parameter.param_type_name == "argument"
    ]
    if not taken and "--out" in flags:
        return f"where to write goes behind its flag: --out {extra}"
    return f"it takes {' '.join(taken)} and flags" if taken else "it takes flags alone"


def meant_format(word: str, words: list[str]) -> str:
    """How rows of a format that has no name are imported."""
    file = (
        word
        if "." in word
        else next((other for other in words[words.index(word) + 1 :] if "." in other), "FILE")
    )
    return f"rows of any fields are read by `cai import table {file} --columns prompt=COLUMN`"


def example_of(command: Any) -> str | None:
    """The example in a command's help."""
    match = re.search(r"Example: (.*)", command.help or "")
    return match[1].strip() if match else None

"""`cai export openrlhf` and `verl`: each setting written is one of the engine's own, of its type; none of ours is
left out; prompts as the policy reads them here.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import mistake
from exports import launched, words
from families import edit_json
from ppo_setup import make_pair, make_pm, write_prompts
from pyarrow import parquet
from tiny import CHATML, make_model

from cai_cli.console.groups import build, flags_of
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.rows.prompt_mix import mixed_prompts
from cai_cli.training.export import openrlhf, verl
from cai_cli.training.export.carried import plan
from cai_cli.training.export.settings import Options
from cai_cli.training.ppo import settings

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
ENGINES = {"openrlhf": openrlhf, "verl": verl}
# Every setting of `cai ppo` that an engine may have an equal for, none at its default.
OTHERS = {
    "seed": 7,
    "kl_coef": 0.01,
    "steps": 3,
    "rollout_batch_size": 16,
    "num_ppo_epochs": 3,
    "num_mini_batches": 2,
    "per_device_train_batch_size": 3,
    "learning_rate": 2e-6,
    "value_learning_rate": 3e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 1,
    "critic_warmup_steps": 1,
    "max_grad_norm": 0.5,
    "clip_range": 0.1,
    "value_clip_range": 0.3,
    "gamma": 0.99,
    "lam": 0.9,
    "max_new_tokens": 5,
    "temperature": 0.8,
    "lora": True,
    "lora_r": 8,
    "lora_alpha": 4,
    "gradient_checkpointing": True,
    "gpu_memory_utilization": 0.4,
    "score_clip": 5.0,
    "target_kl": 6.0,
    "eval_steps": 2,
    "save_steps": 1,
    "num_nodes": 2,
    "gpus_per_node": 2,
    "tensor_parallel_size": 2,
    "reward_url": "http://10.0.0.1:5000",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    return *make_pair(folder), write_prompts(folder / "prompts.jsonl")


@pytest.fixture(scope="module")
def exported(cai, inputs, tmp_path_factory) -> dict[str, Path]:
    """Both exports of one --config file."""
    folder = tmp_path_factory.mktemp("exports")
    held_out = write_prompts(folder / "held-out.jsonl", 14)
    config = folder / "ppo.yaml"
    config.write_text(yaml.safe_dump({**OTHERS, "eval_prompts": str(held_out)}))
    found = {}
    for engine in ENGINES:
        command = words(engine, *inputs, folder / engine)
        done = cai(*command[: command.index("--steps")], "--config", config)
        assert done.returncode == 0, done.stderr
        assert "--target-kl (theirs aims at the KL a token" in done.stderr
        found[engine] = folder / engine
    return found


def schema(engine: str) -> dict[str, Any]:
    found = json.loads((HERE / f"{engine}.json").read_text())
    assert found["version"] == ENGINES[engine].VERSION
    return found["settings"]


def test_each_flag_is_one_of_openrlhfs_and_takes_what_is_written(exported):
    known = schema("openrlhf")
    casts = {"int": int, "float": float, "str": str}
    for name, given in launched(exported["openrlhf"] / "launch.sh").items():
        kind = known[name]
        if kind == "flag":
            assert not given, name
        elif isinstance(kind, list) and kind[0] not in casts:
            assert given[0] in kind, name
        else:
            kinds = kind if isinstance(kind, list) else [kind]
            assert len(given) == len(kinds), name
            assert [casts[one](value) for one, value in zip(kinds, given, strict=True)]
            # argparse takes for a flag what it does not see to be a number
            assert not any(value.startswith("-") and "e" in value for value in given), name


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or name.endswith("override_optimizer_config"):
        return {name: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= leaves(inner, f"{name}.{key}".lstrip("."))
    return found


def test_each_setting_is_one_of_verls_and_of_its_type(exported):
    known = schema("verl")
    written = yaml.safe_load((exported["verl"] / "ppo.yaml").read_text())
    assert written.pop("defaults") == ["ppo_trainer", "_self_"]
    assert written.pop("hydra") == {"searchpath": ["pkg://verl.trainer.config"]}
    for name, value in leaves(written).items():
        kind = type(value).__name__
        assert known[name] in (kind, "any") or {known[name], kind} == {"int", "float"}, name
    for given in launched(exported["verl"] / "launch.sh")["--config-name"][1:]:
        name, _, value = given.partition("=")
        assert name.startswith("+") or known[name] in ("str", "any"), name
        assert value.startswith("'$") and value.endswith("'")


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_written_is_what_was_asked_for(exported, engine):
    settings = json.loads((exported[engine] / "export.json").read_text())["settings"]
    if engine == "openrlhf":
        wanted = {
            "algo.kl.init_coef": 0.01,
            "rollout.batch_size": 16,
            "train.batch_size": 8,
            "train.micro_batch_size": 2,  # of 8 episodes on 4 GPUs, at most 3
            "train.max_epochs": 3,
            "actor.adam.lr": 2e-6,
            "critic.adam.lr": 3e-6,
            "actor.lr_scheduler": "cosine",
            "critic.freezing_steps": 0,  # the actor learns once the step's number is above it, from 0
            "actor.eps_clip": 0.1,
            "critic.value_clip": 0.3,
            "algo.advantage.lambd": 0.9,
            "ds.lora.rank": 8,
            "vllm.num_engines": 2,
            "train.seed": 7,
            "eval.steps": 2,
        }
    else:
        wanted = {
            "algorithm.kl_ctrl.kl_coef": 0.01,
            "data.train_batch_size": 16,
            "critic.ppo_mini_batch_size": 8,
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 2,
            "actor_rollout_ref.actor.clip_ratio_high": 0.1,
            "critic.optim.lr": 3e-6,
            "trainer.critic_warmup": 2,  # the actor learns from the step of this number on, from 1
            "actor_rollout_ref.actor.optim.lr_warmup_steps": 1,
            "actor_rollout_ref.model.lora_rank": 8,
            "trainer.total_training_steps": 3,
            "trainer.nnodes": 2,
            "data.max_response_length": 5,
            "trainer.test_freq": 2,
        }
    assert {name: settings[name] for name in wanted} == wanted


@pytest.mark.parametrize("engine", ENGINES)
def test_no_setting_of_ours_is_left_out(engine, tmp_path, exported):
    given = {"model": "m", "pm": "p", "prompts": ["x"], "out": tmp_path}
    options = build(Options, **given)
    carried = ENGINES[engine].carried(options, plan(options, 10))
    assert carried.keys() == flags_of(Options).keys()
    assert flags_of(settings.Options).keys() < carried.keys()
    assert all(
        each.theirs or each.remark or name in ("eval_prompts", "eval_steps") for name, each in carried.items()
    )
    readme = (exported[engine] / "README.md").read_text()
    assert all(f"| `--{name.replace('_', '-')}` |" in readme for name in carried)
    assert f"{engine} {ENGINES[engine].VERSION}" in readme


@pytest.mark.parametrize(("steps", "warmup"), [(3, 1), (7, 3), (200, 20), (30, 29), (49, 49), (5, 0)])
def test_openrlhf_warms_up_for_as_many_updates(steps, warmup):
    """It takes the ceiling of all updates times the share."""
    import math

    options = build(
        Options, model="m", pm="p", prompts=["x"], out=Path("o"), steps=steps, warmup_steps=warmup
    )
    assert math.ceil(steps * 4 * openrlhf.warmup_ratio(options)) == warmup * 4


def test_prompts_are_those_of_the_run_in_its_order(inputs, exported):
    wanted = mixed_prompts([(read_prompts([str(inputs[2])]), 1.0)], 48, 7)
    lines = [json.loads(line) for line in (exported["openrlhf"] / "prompts.jsonl").read_text().splitlines()]
    rows = parquet.read_table(exported["verl"] / "prompts.parquet").to_pylist()
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in rows] == [p.prompt for p in wanted]
    assert [json.loads(line["label"]) for line in lines] == [prompt.prompt for prompt in wanted]
    assert rows[5]["extra_info"] == {"index": 5, "id": wanted[5].id}
    assert len(parquet.read_table(exported["verl"] / "eval.parquet")) == 14


def test_a_system_turn_stands_where_the_template_has_room_for_it(cai, tmp_path):
    """Engines use the template plainly: what it would drop is put where we put it."""
    template = (
        "{% for message in messages %}{% if message['role'] != 'system' %}<|im_start|>{{ message['role'] }}\n"
        "{{ message['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    model = make_model(tmp_path / "lm", chat_template=template)
    pm = make_pm(model, tmp_path / "pm")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": turns}) + "\n")
    done = cai(*words("openrlhf", model, pm, tmp_path / "p.jsonl", tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    line = json.loads((tmp_path / "out/prompts.jsonl").read_text().splitlines()[0])
    assert line["prompt"] == [{"role": "user", "content": "Be brief.\n\nWhy?"}]
    assert json.loads(line["label"]) == turns


def test_settings_of_the_template_go_to_the_engine_that_has_them(cai, tmp_path):
    """Qwen3's `enable_thinking` is one: without it the policy is asked in a mode it was not trained in."""
    short = CHATML.replace("assistant\n{% endif %}", "assistant\n{{ 'briefly' if short else '' }}{% endif %}")
    model = make_model(tmp_path / "lm", chat_template=short)
    inputs = model, make_pm(model, tmp_path / "pm"), write_prompts(tmp_path / "prompts.jsonl")
    given = ("--chat-template-kwargs", '{"short": true}')
    done = cai(*words("verl", *inputs, tmp_path / "verl"), *given)
    assert done.returncode == 0, done.stderr
    written = yaml.safe_load((tmp_path / "verl/ppo.yaml").read_text())
    assert written["data"]["apply_chat_template_kwargs"] == {"short": True}
    mistake(cai(*words("openrlhf", *inputs, tmp_path / "out"), *given), "OpenRLHF has no such setting")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_command_again_does_nothing_and_dry_run_writes_nothing(cai, inputs, tmp_path, engine):
    command = words(engine, *inputs, tmp_path / "out")
    dry = cai(*command, "--dry-run")
    assert dry.returncode == 0 and "exec python3 -m" in dry.stdout, dry.stderr
    assert not (tmp_path / "out").exists()
    assert cai(*command).returncode == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert cai(*command).returncode == 0
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    mistake(cai(*command, "--kl-coef", 0.2), "--kl-coef was 0.05, now 0.2")


def test_what_an_engine_could_not_do_is_told_before(cai, inputs, tmp_path):
    model, pm, prompts = inputs
    out = tmp_path / "out"
    mistake(
        cai(*words("verl", *inputs, out, "--gpus-per-node", 3)), "4 episodes are not shared evenly by 3 GPUs"
    )
    mistake(cai(*words("verl", *inputs, out, "--tensor-parallel-size", 3)), "does not divide 2 GPUs")
    other = make_model(
        tmp_path / "other", chat_template="{{ messages[0]['content'] }}{{ messages[-1]['content'] }}"
    )
    mistake(cai(*words("openrlhf", other, pm, prompts, out)), "its chat template is not that of")
    (tmp_path / "image.jsonl").write_text('{"prompt": "What does <image> mean in HTML?"}\n')
    mistake(cai(*words("openrlhf", model, pm, tmp_path / "image.jsonl", out)), "reads a picture")
    edit_json(make_model(tmp_path / "unstopped") / "generation_config.json", eos_token_id=0)
    tokenizer = tmp_path / "unstopped/tokenizer_config.json"
    edit_json(tokenizer, eos_token="<|endoftext|>", pad_token="<|im_start|>")
    pm_of = make_pm(tmp_path / "unstopped", tmp_path / "unstopped-pm")
    told = mistake(cai(*words("openrlhf", tmp_path / "unstopped", pm_of, prompts, out)), "does not name")
    assert "<|im_end|>" in told
    assert not out.exists()


# The engines themselves, where they are installed


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed (pip install --no-deps {name}=={ENGINES[name].VERSION})")
    return Path(next(iter(spec.submodule_search_locations)))


def test_openrlhfs_own_parser_takes_the_flags(exported, tmp_path):
    folder = package("openrlhf")
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        f"from engine_schemas import run_openrlhf\n"
        f"run_openrlhf(Path({str(folder)!r}), lambda args: print(args.critic.model_name_or_path, args.algo.kl.init_coef))\n"
    )
    script = (exported["openrlhf"] / "launch.sh").read_text()
    kept = [line for line in script.splitlines() if not line.startswith("python3 -c")]
    command = "\n".join(kept).replace(f"python3 -m {openrlhf.MODULE}", f"{sys.executable} {program}")
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env={**os.environ, "PM": "/models/pm"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "/models/pm 0.01"


def test_verls_own_configuration_takes_the_settings(exported):
    folder = package("verl")
    hydra = pytest.importorskip("hydra", reason="hydra-core is not installed")
    given = launched(exported["verl"] / "launch.sh")["--config-name"][1:]
    places = [f"hydra.searchpath=['file://{folder}/trainer/config']", *given]
    with hydra.initialize_config_dir(str(exported["verl"]), version_base=None):
        config = hydra.compose("ppo", overrides=places)
    assert config.algorithm.kl_ctrl.kl_coef == 0.01
    assert config.actor_rollout_ref.actor.fsdp_config.strategy == "fsdp"  # of verl's own
    assert config.reward.reward_kwargs.url == "$REWARD_URL"

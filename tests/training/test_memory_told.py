"""Memory told before it is spent: formulas beside what autograd keeps and numbers worked by hand, and what a dry run
says.
"""

from __future__ import annotations

import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from families import edit_json
from peft import LoraConfig, get_peft_model
from ppo_setup import options_for
from stack_exchange_dumps import dump, site_rows
from torch.nn.attention import SDPBackend, sdpa_kernel
from trainer_runs import COMMANDS, make_world
from transformers import LlamaConfig, LlamaForCausalLM

from cai_cli.training.memory.forecast import Forecast, Launch, most_of_a_minibatch, of_ppo
from cai_cli.training.memory.formulas import (
    BUCKET,
    LIVE,
    QUANTISED,
    Pass,
    Way,
    attention_bytes,
    cache_bytes,
    copied_weights,
    gathered_bytes,
    gradient_bytes,
    kept_bytes,
    layer_bytes,
    learning,
    optimiser_bytes,
    standing_bytes,
    weight_bytes,
)
from cai_cli.training.memory.shape import shape_from
from cai_cli.training.memory.told import launch
from cai_cli.training.ppo.learner import Learner

README = Path(__file__).parents[2] / "README.md"
ROWS, WIDTH = 3, 40


def llama(layers: int = 2, keys: int = 2) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=keys,
            vocab_size=500,
            tie_word_embeddings=True,
        )
    )


def kept_in_truth(model: LlamaForCausalLM, bf16: bool = False, padded: bool = False) -> int:
    """Bytes of all that autograd keeps of a pass, but for the weights themselves."""
    ids, mask = torch.randint(500, (ROWS, WIDTH)), torch.ones(ROWS, WIDTH, dtype=torch.long)
    mask[0, WIDTH - 10 :] = 0 if padded else 1
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noting = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with noting, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
    assert states.requires_grad  # and with it all that is kept lives until here
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [0, 8])
def test_a_layer_keeps_what_autograd_keeps_of_it(rank, base, bf16, padded):
    way = Way(size=base.itemsize, bf16=bf16, rank=rank)
    attention = "masked" if padded else "kernel"
    given = Pass(tokens=ROWS * WIDTH, width=WIDTH, attention=attention, gpu=False)
    truth, told = [], []
    for layers in (2, 3):  # what one layer more keeps
        model = llama(layers)
        told.append(kept_bytes(shape_from(model), way, given))
        model = model.to(base)
        if rank:
            adapters = LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(model, adapters).get_base_model()
        truth.append(kept_in_truth(model, bf16, padded))
    assert told[1] - told[0] == pytest.approx(truth[1] - truth[0], rel=0.01)
    assert told[1] == pytest.approx(truth[1], rel=0.03)


@pytest.mark.parametrize("keys", [2, 4])
def test_without_a_kernel_attention_keeps_its_weights(keys):
    """As on a GPU, where none takes grouped queries in 32 bits; here torch is told to use none."""
    with sdpa_kernel(SDPBackend.MATH):
        truth = kept_in_truth(llama(3, keys)) - kept_in_truth(llama(2, keys))
    shape, given = shape_from(llama(3)), Pass(tokens=ROWS * WIDTH, width=WIDTH)
    assert given.tokens * layer_bytes(shape, Way(), given) == pytest.approx(truth, rel=0.01)
    even = shape_from(llama(3, 4))
    assert attention_bytes(even, Way(), given) == 4 * 64 * 4  # a kernel takes it
    assert attention_bytes(shape, Way(bf16=True), given) == (2 * 64 + 2 * 32) * 2


def test_weights_gradients_and_optimiser_by_hand():
    shape = shape_from(llama())
    matrices = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 176)
    assert (shape.linear, shape.embedding, shape.head) == (matrices, 500 * 64, 0)
    assert shape.weights == matrices + 500 * 64 + 5 * 64
    adapter = 2 * (2 * 128 + 2 * 96 + 3 * 240)
    assert (shape.adapter, shape.matrices) == (adapter, 14)

    full, lora = Way(), Way(size=2, bf16=True, rank=8)
    assert weight_bytes(shape, full) == gradient_bytes(shape, full) == 4 * shape.weights
    assert optimiser_bytes(shape, full) == 8 * shape.weights
    assert weight_bytes(shape, lora) == 2 * shape.weights + 4 * 8 * adapter
    assert gradient_bytes(shape, lora) == 4 * 8 * adapter  # in float32 whatever the base has
    assert optimiser_bytes(shape, lora) == 8 * 8 * adapter
    packed = Way(size=2, bf16=True, rank=8, quantize="4bit")
    assert QUANTISED["4bit"] == pytest.approx(0.516, abs=1e-3)  # QLoRA: 0.127 bits of scales a weight
    rest = 500 * 64 + 5 * 64
    assert weight_bytes(shape, packed) == pytest.approx(matrices * 0.5158691 + 2 * rest + 4 * 8 * adapter)
    parts = replace(full, shards=4)
    assert weight_bytes(shape, parts) == shape.weights
    assert optimiser_bytes(shape, parts) == 2 * shape.weights
    assert cache_bytes(shape, 4, 3, 40) == 2 * 2 * 32 * 4 * 3 * 40


def test_deepspeed_s_parts_by_hand():
    """As two processes held them, but for what is gathered (scripts/bench/RESULTS.md)."""
    shape, given = shape_from(llama()), Pass(tokens=4, width=4, gpu=False)
    two, three = Way(zero=2), Way(zero=2, shards=2)
    assert (weight_bytes(shape, two), weight_bytes(shape, three)) == (4 * shape.weights, 2 * shape.weights)
    for way in (two, three):
        assert gradient_bytes(shape, way) == 2 * shape.weights
        # Two moments, the weights in float32 that they step, and all gradients on their way.
        assert optimiser_bytes(shape, way) == 6 * shape.weights + BUCKET
        assert standing_bytes(shape, way) == 8 * shape.weights + BUCKET
    assert gathered_bytes(shape, two, given) == 0
    assert gathered_bytes(shape, three, given) == 4 * shape.weights  # a small model, all of it
    large = replace(shape, weights=10 * LIVE)
    assert gathered_bytes(large, three, given) == 4 * (LIVE + 500 * 64)
    assert standing_bytes(shape, Way()) == optimiser_bytes(shape, Way()) == 8 * shape.weights


def test_gradients_come_as_activations_go():
    """The most is not the sum: only with --gradient-accumulation-steps are all gradients there at the forward pass."""
    shape, way = shape_from(llama()), Way()
    few, many = (Pass(tokens=n, width=40, gpu=False) for n in (4, 4000))
    small, large = learning(shape, way, few), learning(shape, way, many)
    assert small.peak == gradient_bytes(shape, way) + 4 * 500 * 64  # and the embeddings' own, which is dense
    # The first layer on the way back: its states and MLP, one of its gradients, nothing of the others yet.
    assert large.peak == large.activations + 4000 * (2 * 64 + 2 * 176) * 4 + shape.linear / 2 * 4
    assert learning(shape, replace(way, accumulates=True), many).peak == large.peak + large.gradients
    again = learning(shape, replace(way, checkpointing=True), many)
    assert again.peak < 0.7 * large.peak
    assert copied_weights(shape, replace(way, bf16=True)) == 2 * shape.linear
    buckets = learning(shape, replace(way, buckets=True), many)
    assert buckets.peak == large.peak + large.gradients


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("memory"))


def told(cai, world: Path, stage: str, *flags: str) -> tuple[dict[str, list[float]], str]:
    """The numbers of the dry run's table, by name, and its last line."""
    done = cai(*COMMANDS[stage].split(), "--dry-run", "--out", "dry", *flags, cwd=world)
    assert done.returncode == 0, done.stderr
    assert not (world / "dry").exists()
    rows = re.findall(r"│ (\w+) +│((?: +[\d.]+ │)+)", done.stderr)
    return {name: [float(number) for number in re.findall(r"[\d.]+", cells)] for name, cells in rows}, (
        done.stderr.splitlines()[-1]
    )


@pytest.mark.parametrize("stage", ["sft", "train-pm", "ppo"])
def test_a_dry_run_tells_the_memory_and_whether_it_is_there(cai, world, stage):
    numbers, line = told(cai, world, stage, "--device", "cpu")
    names = ["weights", "gradients", "optimiser", "activations", "total"]
    assert list(numbers) == (names if stage != "ppo" else [*names[:4], "cache", "total"])
    assert re.fullmatch(r"fits: [\d.]+ GB, with [\d.]+ GB free of this machine's memory", line)
    _, line = told(cai, world, stage, "--device", "cuda")
    there = torch.cuda.is_available()
    assert ("free of cuda:0" if there else "there is no cuda:0 here to compare that with") in line


def test_what_does_not_fit_is_told_with_what_helps(cai, world):
    wide = world / "wide"
    shutil.copytree(world / "lm", wide, dirs_exist_ok=True)
    edit_json(
        wide / "config.json", hidden_size=32_768, intermediate_size=131_072
    )  # 26 billion weights, not loaded
    _, line = told(cai, world, "sft", "--device", "cpu", "--model", "wide")
    assert re.match(r"does NOT fit: 4\d\d\.\d GB, with [\d.]+ GB free of this machine's memory", line)
    assert (
        "--lora, or --gradient-checkpointing, or --per-device-train-batch-size 4 (now 8) takes less" in line
    )
    numbers, line = told(cai, world, "train-pm", "--device", "cpu", "--model", "wide", "--lora", "--bf16")
    assert "--quantize 4bit" in line and "--lora," not in line
    assert numbers["gradients"][0] < 1 < 50 < numbers["weights"][0] < 54  # the base in bfloat16
    parts, _ = told(cai, world, "ppo", "--device", "cuda", "--model", "wide", "--value-device", "cpu")
    assert len(parts["total"]) == 2 and parts["weights"][0] > 200 > 1 > parts["weights"][1]


def test_a_preference_model_s_memory_is_told_before_there_are_pairs(cai, world, tmp_path):
    posts = dump(tmp_path / "beer.Posts.xml", site_rows())
    done = cai("pmp", "--model", world / "lm", "--posts", posts, "--dry-run", "--out", tmp_path / "pmp")
    assert done.returncode == 0 and "would make pairs" in done.stderr and "total" in done.stderr


def test_a_launch_in_parts_is_one(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert launch("cuda") == Launch(processes=4, sharded=False, gpu=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert launch("cpu") == Launch(processes=4, sharded=True, gpu=False)
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert launch("cuda") == Launch(processes=4, zero=2, gpu=True)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    assert launch("cuda") == Launch(processes=4, zero=3, gpu=True) and launch("cuda").in_parts


def test_what_ppo_holds_by_deepspeed(tmp_path):
    options, shape = options_for(*[tmp_path] * 4), shape_from(llama())

    def held(**launched: int) -> Forecast:
        return of_ppo(options, shape, shape, [20], Launch(**launched))[0]

    copies, two, three = (held(processes=4, zero=stage) for stage in (0, 2, 3))
    assert two.weights == copies.weights == 4 * 4 * shape.weights  # policy, value and the frozen ones
    assert three.weights == copies.weights / 4
    for way in (two, three):
        assert way.gradients == copies.gradients / 4
        assert way.optimiser == copies.optimiser * 3 / 8 + 2 * BUCKET  # of policy and value
        assert way.total > way.weights + way.optimiser + 2 * way.gradients
        assert way.cache == copies.cache
    assert held(zero=3) == held()  # one process holds all


def test_what_a_process_may_have_of_a_minibatch_is_looked_up_in_the_run_s_own_draws(tmp_path, monkeypatch):
    """Of 2 x 8 episodes it can be more than 4."""
    options = options_for(
        *[tmp_path] * 4, steps=5, rollout_batch_size=16, num_mini_batches=2, per_device_train_batch_size=16
    )
    seen = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        learner = SimpleNamespace(ppo=options.ppo, seed=options.output.seed)
        for step in range(5):
            seen += [len(mine) for mine in Learner.minibatches(learner, 16, step, "cpu")]
    assert sum(seen) == 5 * options.ppo.num_ppo_epochs * 16
    assert most_of_a_minibatch(options, Launch(processes=2)) == max(seen) > 4
    assert most_of_a_minibatch(options, Launch()) == 8


@pytest.mark.skipif(not README.is_file(), reason="needs the source tree")
def test_the_readme_s_table_is_what_the_code_computes():
    table = runpy.run_path(str(README.parent / "scripts/what_fits.py"))["table"]
    assert table() in README.read_text(encoding="utf-8")

"""Exports of a tiny policy and preference model, and the two engines as far as they reach our files: what OpenRLHF
posts for a reply, what verl hands to a reward manager.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import shlex
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

from cai_cli.training.export.exported import read_export
from cai_cli.training.export.serving import Reward, open_server
from cai_cli.training.ppo.rewards import RewardShape
from cai_cli.training.preference.reading import open_preference_model

SMALL = ("--steps", 2, "--rollout-batch-size", 8, "--max-new-tokens", 6, "--gpus-per-node", 2)


def words(engine: str, model: Path, pm: Path, prompts: Path, out: Path, *more: object) -> list[object]:
    """`cai export ENGINE` of a run of 2 steps of 8 episodes."""
    return ["export", engine, "--model", model, "--pm", pm, "--prompts", prompts, "--out", out, *SMALL, *more]


def launched(script: Path) -> dict[str, list[str]]:
    """--flag -> its words, of the program that launch.sh starts, with the script's variables as they are."""
    _, _, command = script.read_text().partition("\nexec ")
    found: dict[str, list[str]] = {}
    for word in shlex.split(command.replace("\\\n", " "))[3:-1]:
        if word.startswith("--"):
            found[word] = []
        else:
            found[list(found)[-1]].append(word)
    return found


@contextmanager
def served(export: Path) -> Iterator[str]:
    """The address at which `cai serve` of the export answers; its model is in this process."""
    exported = read_export(export)
    path = exported.preference_model(None)
    shape = dict(exported.settings["reward"])
    stops = shape.pop("stops")
    reward = Reward(open_preference_model(path, "cpu"), path, RewardShape(**shape), stops, rows=4)
    with open_server("127.0.0.1", 0, reward) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def post(url: str, asked: Any) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def by_openrlhf(url: str, tokenizer: Any, row: dict[str, Any], reply: list[int]) -> tuple[float, float]:
    """(reward, score) as OpenRLHF asks for it: its own template, ids, and all of them decoded."""
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    query = tokenizer.decode(ids + reply, skip_special_tokens=False)
    answer = post(url, {"query": [query], "prompts": [prompt], "labels": [row["label"]]})
    return answer["rewards"][0], answer["scores"][0]


class Base:
    """verl's RewardManagerBase, as far as a subclass sees it."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score


class Data(list):
    """One row of verl's DataProto: a part of it is one too."""

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return Data(found) if isinstance(place, slice) else found


def by_verl(
    url: str, tokenizer: Any, row: dict[str, Any], reply: list[int], folder: Path
) -> tuple[float, float]:
    """(reward, score) as verl gets it of the exported reward manager, whose base class is a stand-in."""
    import torch

    name = "verl.experimental.reward_loop.reward_manager.base"
    base = ModuleType(name)
    base.RewardManagerBase = Base  # type: ignore[attr-defined]
    there, sys.modules[name] = sys.modules.get(name), base
    outer = [name.rsplit(".", n)[0] for n in range(1, 5)]
    added = [each for each in outer if each not in sys.modules]
    sys.modules |= {each: ModuleType(each) for each in added}
    try:
        spec = importlib.util.spec_from_file_location("reward", folder / "reward.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for each in (*added, name):
            sys.modules.pop(each)
        if there is not None:
            sys.modules[name] = there
    kwargs = SimpleNamespace(reward=SimpleNamespace(reward_kwargs=SimpleNamespace(url=url)))
    manager = module.PreferenceModelReward(config=kwargs, tokenizer=tokenizer, compute_score=None)
    ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    padded = [tokenizer.pad_token_id] * 3 + ids, [*reply, tokenizer.pad_token_id]
    mask = [0] * 3 + [1] * (len(ids) + len(reply)) + [0]
    batch = {
        "prompts": torch.tensor(padded[0]),
        "responses": torch.tensor(padded[1]),
        "attention_mask": torch.tensor(mask),
    }
    item = SimpleNamespace(batch=batch, non_tensor_batch={"reward_model": row["reward_model"]})
    found = asyncio.run(manager.run_single(Data([item])))
    return found["reward_score"], found["reward_extra_info"]["pm_score"]


def scored(cai: Callable[..., Any], pm: Path, prompt: list[dict[str, str]], reply: str, file: Path) -> float:
    """What `cai score` gives."""
    row = {"id": "a", "prompt": prompt, "completion": [{"role": "assistant", "content": reply}]}
    file.write_text(json.dumps(row) + "\n")
    done = cai("score", "--pm", pm, file, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["score"]

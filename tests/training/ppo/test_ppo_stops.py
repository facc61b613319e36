"""PPO told to stop: what it goes on from has not been checked yet, and so must never be taken for the last
good policy.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
from ppo_setup import make_pair, options_for, write_prompts

from cai_cli.errors import RunError
from cai_cli.processes import interruption
from cai_cli.stages import ppo
from cai_cli.training.checkpoints import checkpoints
from cai_cli.training.ppo import run_state
from cai_cli.training.ppo.best import Best
from cai_cli.training.ppo.run_state import RunState
from cai_cli.training.ppo.trainer import Trainer

RUNS_AWAY = {
    "steps": 12,
    "save_steps": 2,
    "learning_rate": 0.02,
    "kl_coef": 0.0,
    "lr_scheduler_type": "constant",
}
FILES = ("model.safetensors", "metrics.jsonl", "samples.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ppo-stops")
    make_pair(folder)
    write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    interruption.listen()
    yield
    signal.signal(signal.SIGTERM, before)
    interruption.Signalled.came = False


def make(folder: Path, out: Path, **changes):
    settings = {"max_kl": 2.0, "sample_steps": 1, **RUNS_AWAY, **changes}
    return options_for(folder / "lm", folder / "pm", folder / "prompts.jsonl", out, **settings)


def run_until_stopped(options, monkeypatch, steps: set[int]) -> int:
    """Run with a SIGTERM in the update of each of these steps, again and again to the end; returns how often
    it was stopped.
    """
    learn, sent, stops = Trainer.learn, set[int](), 0

    def and_be_told(self, number, rollout, clock):
        if number in steps - sent:
            sent.add(number)
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, number, rollout, clock)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", and_be_told)
        while True:
            interruption.Signalled.came = False
            try:
                ppo.run(options)
            except interruption.Terminated:
                stops += 1
                continue
            return stops


def facts(out: Path) -> dict:
    return json.loads((out / "cai.json").read_text())


@pytest.mark.parametrize("changes", [{}, {"eval": 1}, {"best": 1}])
def test_a_kl_that_runs_away_ends_with_the_same_policy_wherever_the_run_was_stopped(
    folder, tmp_path, monkeypatch, changes
):
    """Between the last checked checkpoint and the runaway every step is stopped at once: the same checked one
    is saved.
    """
    flags = {}
    if changes:
        flags = {"eval_prompts": [str(folder / "prompts.jsonl")], "eval_steps": 3}
    if "best" in changes:
        flags |= {"load_best_model_at_end": True}
    ppo.run(make(folder, tmp_path / "whole", **flags))
    told = facts(tmp_path / "whole")
    done = told["steps_done"]
    assert "is above --max-kl 2" in told["stopped"] and 0 < told["saved_step"] < done < 12
    for name, steps in {"once": {done - 1}, "always": set(range(done))}.items():
        out = tmp_path / name
        assert run_until_stopped(make(folder, out, **flags), monkeypatch, steps) == len(steps)
        for file in FILES:
            assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (name, file)
        for fact in ("steps_done", "stopped", "saved_step", "best_step", "kl_coef"):
            assert facts(out)[fact] == told[fact], (name, fact)


def stopped_at(options, monkeypatch, step: int) -> None:
    learn = Trainer.learn

    def and_be_told(self, number, rollout, clock):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, number, rollout, clock)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "learn", and_be_told)
        with pytest.raises(interruption.Terminated):
            ppo.run(options)
    interruption.Signalled.came = False


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_stop_before_anything_is_checked_saves_no_policy_that_ran_away(folder, tmp_path, monkeypatch):
    options = make(folder, tmp_path / "out", save_steps=100)
    stopped_at(options, monkeypatch, 2)
    assert [path.name for path in (options.output.out / "checkpoints").iterdir()] == ["unchecked-00000003"]
    with pytest.raises(RunError, match="before the first checkpoint"):
        ppo.run(options)
    assert not (options.output.out / "cai.json").exists()


def test_a_damaged_last_good_policy_is_come_to_again(folder, tmp_path, monkeypatch, capsys):
    """The run goes on from before it, though a newer checkpoint is whole: where the KL runs away that one has
    nothing to save.
    """
    ppo.run(make(folder, tmp_path / "whole", save_steps=1))
    told = facts(tmp_path / "whole")
    assert told["saved_step"] > 1
    options = make(folder, tmp_path / "out", save_steps=1)
    stopped_at(options, monkeypatch, told["saved_step"])
    assert (options.output.out / f"checkpoints/unchecked-{told['steps_done']:08d}/complete").exists()
    good = options.output.out / f"checkpoints/step-{told['saved_step']:08d}"
    damage(good / "state.pt")
    capsys.readouterr()
    ppo.run(options)
    said = capsys.readouterr().err
    assert (
        said.count(f"{good.name}/state.pt: is damaged") == 1 and f"from step {told['saved_step'] - 1}" in said
    )
    for file in FILES:
        assert (options.output.out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


def test_a_last_good_policy_damaged_while_the_run_goes_on_is_an_error(folder, tmp_path, monkeypatch):
    """Where the KL ran away the policy before it is another one: not saved in its place, but come to again."""
    ppo.run(make(folder, tmp_path / "whole", save_steps=1))
    told = facts(tmp_path / "whole")
    options, settle = make(folder, tmp_path / "out", save_steps=1), RunState.settle

    def damaged_before(self):
        damage(self.folder / f"step-{self.checked:08d}/state.pt")
        return settle(self)

    with monkeypatch.context() as patch:
        patch.setattr(RunState, "settle", damaged_before)
        with pytest.raises(RunError, match=rf"step-{told['saved_step']:08d}/state\.pt: is damaged"):
            ppo.run(options)
    assert not (options.output.out / "cai.json").exists()
    ppo.run(options)
    assert facts(options.output.out)["saved_step"] == told["saved_step"]
    assert (options.output.out / FILES[0]).read_bytes() == (tmp_path / "whole" / FILES[0]).read_bytes()


@pytest.mark.parametrize("method", ["load", "evaluate", "save_critic", "save_policy"])
def test_a_stop_at_any_other_time_does_no_harm(folder, tmp_path, monkeypatch, method):
    """While a checkpoint is loaded, held-out prompts are sampled, a checkpoint or the model is saved: half of
    it done.
    """
    flags = {
        "eval_prompts": [str(folder / "prompts.jsonl")],
        "eval_steps": 3,
        "steps": 5,
        "learning_rate": 1e-3,
    }
    ppo.run(make(folder, tmp_path / "whole", **flags))
    options, done = make(folder, tmp_path / "out", **flags), getattr(Trainer, method)
    if method == "load":
        stopped_at(options, monkeypatch, 2)

    def and_be_told(self, *arguments):
        found = done(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, and_be_told)
        with pytest.raises(interruption.Terminated):
            ppo.run(options)
    assert not (options.output.out / "cai.json").exists()
    interruption.Signalled.came = False
    ppo.run(options)
    for file in FILES:
        assert (options.output.out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file


BEST = {
    "max_kl": 50.0,
    "load_best_model_at_end": True,
    "eval_steps": 1,
    "save_steps": 2,
    "steps": 6,
    "learning_rate": 1e-3,
}


def test_no_more_policies_pile_up_than_there_is_room_for(folder, tmp_path, monkeypatch):
    """Each measurement better than the one before, and a checkpoint only at the end of many: two of the best
    ones at most.
    """
    counts, save, offered = [], run_state.save_weights, Best.offer

    def counted(target, *state):
        save(target, *state)
        counts.append({name: len(checkpoints(target.parent, name)) for name in ("best", "step")})

    monkeypatch.setattr(run_state, "save_weights", counted)
    monkeypatch.setattr(
        Best, "offer", lambda self, step, episodes, budget: offered(replace_score(self), step, episodes, 1e9)
    )
    flags = {
        **BEST,
        "max_kl": 1e9,
        "eval_prompts": [str(folder / "prompts.jsonl")],
        "save_steps": 4,
        "steps": 10,
    }
    ppo.run(make(folder, tmp_path / "out", **flags))
    assert len(counts) == 13 and max(count["best"] - count["step"] for count in counts) == 2
    assert facts(tmp_path / "out")["best_step"] == 10


def replace_score(best: Best) -> Best:
    best.score = -math.inf
    return best


def test_held_out_prompts_whose_kl_is_not_finite_end_in_the_last_good_policy(folder, tmp_path, monkeypatch):
    """The rollouts' KL looks well: what is not finite is seen on held-out prompts alone."""
    flags = {**BEST, "eval_prompts": [str(folder / "prompts.jsonl")], "load_best_model_at_end": False}
    row, seen = run_state.held_out_row, []

    def odd(episodes):
        seen.append(row(episodes))
        return seen[-1] | ({"eval_kl": math.nan} if len(seen) == 5 else {})

    monkeypatch.setattr(run_state, "held_out_row", odd)
    ppo.run(make(folder, tmp_path / "out", **flags))
    told = facts(tmp_path / "out")
    assert "the KL is nan at step 4" in told["stopped"] and told["saved_step"] == 2
    assert all(math.isfinite(value) for value in told["evaluation"].values())


def test_warnings_outlast_a_stop_after_the_last_step(folder, tmp_path, monkeypatch):
    options = make(folder, tmp_path / "out", steps=2, learning_rate=1e-3, max_kl=50.0)
    ppo.run(make(folder, tmp_path / "whole", steps=2, learning_rate=1e-3, max_kl=50.0))
    stopped_at(options, monkeypatch, 1)
    ppo.run(options)
    assert facts(options.output.out)["warnings"] == facts(tmp_path / "whole")["warnings"] != []


def test_each_kept_checkpoint_has_its_best_policy(folder, tmp_path, monkeypatch, capsys):
    """The best one damaged: passed over for the checkpoint before it, where it is measured again; with none
    before an error.
    """
    flags = {**BEST, "eval_prompts": [str(folder / "prompts.jsonl")]}
    ppo.run(make(folder, tmp_path / "whole", **flags))
    options = make(folder, tmp_path / "out", **flags)
    stopped_at(options, monkeypatch, 5)
    kept = options.output.out / "checkpoints"
    for checkpoint in sorted(kept.glob("step-*")):
        assert any(int(path.name[-8:]) <= int(checkpoint.name[-8:]) for path in kept.glob("best-*"))
    best = sorted(kept.glob("best-*"))[-1]
    everything = Path(shutil.copytree(options.output.out, tmp_path / "copy"))
    damage(best / "state.pt")
    earlier = [path for path in kept.glob("step-*") if int(path.name[-8:]) < int(best.name[-8:])]
    capsys.readouterr()
    if earlier:
        ppo.run(options)
        assert f"{best.name}/state.pt: is damaged" in capsys.readouterr().err
        for file in FILES:
            assert (options.output.out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file
    for path in (everything / "checkpoints").glob("best-*"):
        damage(path / "state.pt")
    with pytest.raises(RunError, match=r"best-\d+/state\.pt: is damaged.*; no checkpoint before it is whole"):
        ppo.run(make(folder, everything, **flags))

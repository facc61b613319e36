"""`cai ppo` on input that is odd: a clear outcome for each; and what it shows and refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import mistake
from ppo_setup import make_pair, make_pm, options_for, write_prompts
from stack_exchange_dumps import dump, site_rows
from tiny import CHATML, make_model

from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.console.groups import build
from cai_cli.engines.base import LENGTH, STOP
from cai_cli.errors import RunError, UserError
from cai_cli.models.chat import Renderer
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import write_rows
from cai_cli.rows.prompt_files import read_prompts
from cai_cli.stages import pmp, ppo
from cai_cli.training.ppo.critic import Critic
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.trainer import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ppo")
    make_pair(folder)
    write_prompts(folder / "prompts.jsonl")
    return folder


@pytest.fixture
def options(folder, tmp_path):
    def make(**changes):
        given = {"prompts": folder / "prompts.jsonl", "model": folder / "lm", "pm": folder / "pm", **changes}
        model, pm, prompts = (given.pop(name) for name in ("model", "pm", "prompts"))
        return options_for(model, pm, prompts, tmp_path / "out", **given)

    return make


def copy_with(folder, target, source: str, change):
    """A copy of a model with its tokenizer or weights changed."""
    shutil.copytree(folder / source, target)
    change(target)
    return target


def facts(options) -> dict:
    return json.loads((options.output.out / "cai.json").read_text())


def metrics(options) -> list[dict]:
    return [json.loads(line) for line in (options.output.out / "metrics.jsonl").read_text().splitlines()]


# Models that do not agree


@pytest.mark.parametrize("name", ["vocabulary", "chat template"])
def test_a_pm_that_reads_other_ids_is_refused(cai, folder, tmp_path, name):
    def change(target):
        tokenizer = load_tokenizer(str(target))
        if name == "vocabulary":
            tokenizer.add_tokens(["novel"])
        else:
            tokenizer.chat_template += " "
        tokenizer.save_pretrained(target)

    pm = copy_with(folder, tmp_path / "pm", "pm", change)
    words = (
        "ppo",
        "--model",
        folder / "lm",
        "--pm",
        pm,
        "--prompts",
        folder / "prompts.jsonl",
        "--out",
        tmp_path / "out",
    )
    mistake(cai(*words), f"--pm {pm}: its {name} is not that of --model {folder / 'lm'}")
    assert not (tmp_path / "out").exists()


def test_a_gold_pm_of_another_vocabulary_and_template_gets_the_text_anew(folder, options, tmp_path):
    other = make_model(
        tmp_path / "other",
        "qwen2",
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}",
        5,
    )
    gold = make_pm(other, tmp_path / "gold", 3)
    settings = options(gold_pm=str(gold), steps=1)
    ppo.run(settings)
    row = metrics(settings)[-1]
    assert isinstance(row["gold_score"], float) and row["gold_score"] != row["score"]
    with pytest.raises(UserError, match="a language model without a score head"):
        ppo.run(options(gold_pm=str(other), if_changed="restart"))


def test_a_template_with_several_stop_ids(folder, options, tmp_path):
    """generation_config names a second token that ends a reply: it does, and the reply counts as ended."""
    second = 50

    def change(target):
        config = json.loads((target / "generation_config.json").read_text())
        (target / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [2, second]}))

    model = copy_with(folder, tmp_path / "lm", "lm", change)
    settings = options(model=model, missing_eos_penalty=100.0, rollout_batch_size=64)
    trainer = Trainer(settings, 64)
    with torch.no_grad():  # make the second one likely
        trainer.policy.learner.lm_head.weight[second] = 3 * trainer.policy.learner.lm_head.weight.abs().max()
    rollout = trainer.rollout(0, read_prompts(settings.prompts) * 6, Clock())
    ended = [n for n, c in enumerate(rollout.completions) if c.token_ids[-1] == second]
    assert ended
    for n, completion in enumerate(rollout.completions):
        assert (completion.finish_reason == STOP) == (completion.token_ids[-1] in (2, second))
        assert (rollout.rewards[n] < -50) == (completion.finish_reason == LENGTH)


# Prompts and replies at the edge


def test_prompts_longer_than_the_context_are_put_aside_by_name(folder, options, tmp_path):
    prompts = tmp_path / "p.jsonl"
    rows = [
        {"id": "long", "prompt": "word " * 5000},
        {"id": "short", "prompt": "Hi"},
        {"id": "other", "prompt": "Hello"},
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = options(prompts=prompts)
    ppo.run(settings)
    [rejected] = [
        json.loads(line) for line in (settings.output.out / "rejects.jsonl").read_text().splitlines()
    ]
    assert (
        rejected["id"] == "long"
        and rejected["reason"] == "prompt_too_long"
        and "tokens" in rejected["detail"]
    )
    assert facts(settings)["counts"] == {"in": 3, "rejected": {"prompt_too_long": 1}}
    prompts.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(RunError, match=r"none of its prompts can be used \(prompt_too_long 1\)"):
        ppo.run(options(prompts=prompts, if_changed="restart"))
    prompts.write_text(
        "".join(json.dumps({**rows[0], "id": f"long{n}"}) + "\n" for n in range(3))
        + json.dumps(rows[1])
        + "\n"
    )
    with pytest.raises(RunError, match="3 of 4 prompts cannot be used"):
        ppo.run(options(prompts=prompts, if_changed="restart"))
    ppo.run(options(prompts=prompts, if_changed="restart", max_reject_rate=0.9))


def test_the_preference_model_has_room_for_what_the_policy_may_write(folder, options, tmp_path):
    """Its context is a shorter one: a prompt, 6 tokens of a reply, and an end of turn and EOS."""
    rows = [{"id": "fits", "prompt": "a"}, {"id": "long", "prompt": "a b"}]
    least = len(Renderer(load_tokenizer(str(folder / "lm")), "").encode([message("user", "a")]))

    def shorten(target):
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {"max_position_embeddings": least + 6 + 2}))

    pm = copy_with(folder, tmp_path / "pm", "pm", shorten)
    prompts = tmp_path / "p.jsonl"
    write_rows(prompts, rows)
    with pytest.raises(RunError, match="1 of 2 prompts cannot be used"):
        ppo.run(options(pm=pm, prompts=prompts, max_reject_rate=0.0))
    ppo.run(options(pm=pm, prompts=prompts, steps=1))
    ppo.run(options(prompts=prompts, steps=1, max_reject_rate=0.0, if_changed="restart"))


def test_held_out_prompts_that_all_fall_away_are_told(folder, options, tmp_path):
    """With them would go, without a word, the scores, the guard and the best model."""
    long = tmp_path / "long.jsonl"
    write_rows(long, [{"id": "long", "prompt": "word " * 5000}])
    with pytest.raises(RunError, match="--eval-prompts: none of its prompts can be used"):
        ppo.run(options(eval_prompts=[str(long)]))


def test_a_pm_of_questions_and_answers_is_refused(folder, options, tmp_path):
    """`cai pmp --format qa` keeps the base model's template, so nothing else tells."""

    def taught(target):
        made = build(pmp.Options, model=str(folder / "lm"), posts=[str(posts)], format="qa", out=target)
        write_manifest(target / "cai.json", begin_manifest("pmp", made, target))

    posts = dump(tmp_path / "beer.Posts.xml", site_rows())
    pm = copy_with(folder, tmp_path / "pm", "pm", taught)
    with pytest.raises(UserError, match="taught it questions and answers"):
        ppo.run(options(pm=pm))


SHORT = CHATML.replace("assistant\n{% endif %}", "assistant\n{{ 'briefly' if short else '' }}{% endif %}")


def test_settings_of_the_template_reach_the_rollout(folder, options, tmp_path):
    models = {}
    for name in ("lm", "pm"):

        def change(target):
            tokenizer = load_tokenizer(str(target))
            tokenizer.chat_template = SHORT
            tokenizer.save_pretrained(target)

        models["model" if name == "lm" else "pm"] = copy_with(folder, tmp_path / name, name, change)
    settings = options(**models, chat_template_kwargs='{"short": true}')
    prompts = read_prompts(settings.prompts)[:2]
    with_it = Trainer(settings, 64).rollout(0, prompts, Clock()).completions[0]
    without = Trainer(options(**models), 64).rollout(0, prompts, Clock()).completions[0]
    decode = load_tokenizer(str(models["model"])).decode
    assert decode(with_it.prompt_ids) == decode(without.prompt_ids) + "briefly"


def test_while_the_critic_warms_up_no_graph_is_held(options):
    """The first pass of an update is begun in the rollout, where there is an update."""
    settings = options(bf16=True, critic_warmup_steps=1, num_mini_batches=1, per_device_train_batch_size=8)
    trainer, prompts = Trainer(settings, 64), read_prompts(settings.prompts)[:8]
    trainer.rollout(0, prompts, Clock())
    assert trainer.learner.graph is None
    trainer.rollout(1, prompts, Clock())
    assert trainer.learner.graph is not None


def test_thoughts_that_are_scored_are_told_once(options, monkeypatch, capsys):
    settings = options(steps=2)
    trainer = Trainer(settings, 64)
    drawn = trainer.engine.generate
    thinking = lambda requests: [replace(c, thinking="Hm.") for c in drawn(requests)]  # noqa: E731
    monkeypatch.setattr(trainer.engine, "generate", thinking)
    for step in range(2):
        trainer.rollout(step, read_prompts(settings.prompts)[:8], Clock())
    assert capsys.readouterr().err.count("replies hold thoughts") == 1


@pytest.mark.parametrize("ends", [True, False])
def test_empty_replies_and_replies_that_never_end(folder, options, tmp_path, ends):
    """A policy that says EOS at once, and one that cannot say it."""

    def change(target):
        from cai_cli.models.load import load_lm

        model = load_lm(str(target), "cpu")
        with torch.no_grad():
            model.lm_head = torch.nn.Linear(32, model.config.vocab_size, bias=False)
            model.lm_head.weight.normal_(0, 0.01)
            norm = model.model.norm
            norm.weight.zero_()
            norm.weight[0] = 100.0
            model.lm_head.weight[2] = 0.0
        model.model.embed_tokens.weight.data[:, 0] = 1.0
        with torch.no_grad():
            model.lm_head.weight[2, 0] = 50.0 if ends else -50.0
        model.save_pretrained(target)

    model = copy_with(folder, tmp_path / "lm", "lm", change)
    settings = options(model=model, eval_prompts=[str(folder / "prompts.jsonl")])
    ppo.run(settings)
    row = metrics(settings)[1]
    assert row["missing_eos"] == (0.0 if ends else 1.0)
    assert row["length"] == (1.0 if ends else 6.0)
    assert row["reward"] == pytest.approx(row["score"] - row["missing_eos"], abs=1e-5)
    assert facts(settings)["steps_done"] == 2
    rejects = settings.output.out / "samples.rejects.jsonl"
    assert bool((settings.output.out / "samples.jsonl").read_text()) != ends and rejects.exists() == ends
    assert not ends or {json.loads(line)["reason"] for line in rejects.read_text().splitlines()} == {"empty"}


# Stops


def test_a_kl_that_runs_away_stops_with_the_last_good_policy(folder, options):
    """The policy after the last checkpoint whose own rollout passed, not the one that ran away."""
    settings = options(
        steps=12, save_steps=1, learning_rate=0.02, kl_coef=0.0, max_kl=2.0, lr_scheduler_type="constant"
    )
    ppo.run(settings)
    told = facts(settings)
    assert "is above --max-kl 2" in told["stopped"]
    assert 0 < told["saved_step"] == told["steps_done"] - 1 < 11
    rows = metrics(settings)
    assert all(row["kl"] <= 2.0 for row in rows) and rows[-1]["step"] == told["steps_done"]
    moved = (
        load_lm(str(settings.output.out), "cpu").lm_head.weight
        - load_lm(str(folder / "lm"), "cpu").lm_head.weight
    )
    assert moved.abs().max() > 0


def test_a_kl_that_runs_away_before_a_checkpoint_fails_with_a_next_step(options):
    settings = options(steps=12, learning_rate=0.05, kl_coef=0.0, max_kl=0.5, lr_scheduler_type="constant")
    with pytest.raises(RunError, match="before the first checkpoint") as caught:
        ppo.run(settings)
    assert "--save-steps" in caught.value.hint
    assert not (settings.output.out / "cai.json").exists()


def test_the_gold_guard_stops_and_saves_the_best(folder, options, monkeypatch):
    """The PM's score climbs, the gold one is its opposite: over-optimisation by construction."""
    settings = options(
        gold_pm=str(folder / "pm"),
        eval_prompts=[str(folder / "prompts.jsonl")],
        eval_steps=1,
        steps=40,
        rollout_batch_size=32,
        learning_rate=3e-3,
        kl_coef=0.0,
    )
    words = lambda text: float(len(text.split(" ")))  # noqa: E731
    monkeypatch.setattr(Critic, "score", lambda self, completions: [words(c.text) for c in completions])
    monkeypatch.setattr(
        Trainer, "gold_scores", lambda self, prompts, completions: [-words(c.text) for c in completions]
    )
    ppo.run(settings)
    told = facts(settings)
    assert "the gold score fell" in told["stopped"] and told["steps_done"] < 40
    assert told["saved_step"] == told["best_step"] < told["steps_done"]


# What is refused at once


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"rollout_batch_size": 10, "num_mini_batches": 4}, "10 is not divisible by --num-mini-batches 4"),
        ({"target_kl": 0.0}, "--target-kl 0"),
        ({"target_kl": 6.0, "kl_coef": 0.0}, "--target-kl with --kl-coef 0"),
        ({"target_kl": 6.0, "kl_horizon": 1}, "--kl-horizon 1: a step of 8 episodes"),
        (
            {"steps": 4, "critic_warmup_steps": 4},
            "--critic-warmup-steps 4: of --steps 4 none is left for the policy",
        ),
        ({"lora": True, "lora_dropout": 0.1}, "--lora-dropout 0.1"),
        ({"lora": True, "frozen_dtype": "bfloat16"}, "--frozen-dtype"),
        ({"report_to": ["nix"]}, "--report-to nix: unknown"),
        ({"normalise_scores": True}, "keeps no mean and deviation"),
        ({"gold_pm": "/nix"}, "--gold-pm /nix: no such directory"),
    ],
)
def test_impossible_settings_are_refused_at_once(options, flags, told):
    settings = options(**flags)
    with pytest.raises(UserError) as caught:
        ppo.run(settings)
    assert told in str(caught.value) and caught.value.hint
    assert not settings.output.out.exists()


def test_a_dry_run_shows_the_prompt_and_the_work(options, capsys):
    settings = options(dry_run=True)
    ppo.run(settings)
    shown = capsys.readouterr()
    assert shown.out.startswith("<|im_start|>user\nHow do I make")
    assert "2 steps of 8 episodes" in shown.err and "fits: " in shown.err
    assert not settings.output.out.exists()


def test_metrics_reach_tensorboard(options):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = options(report_to=["tensorboard"])
    ppo.run(settings)
    events = EventAccumulator(str(settings.output.out / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("score")]
    assert logged == pytest.approx([row["score"] for row in metrics(settings)], rel=1e-6)

"""The whole of a PPO run: a rehearsal of saving, the loop of rollouts and updates, and the policy saved with
its card.
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

from torch import Tensor

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import counted, put_aside
from cai_cli.console.messages import say, table, warn, warn_all
from cai_cli.engines.base import LENGTH
from cai_cli.evaluation.cautions import rate_cautions, reply_cautions
from cai_cli.models.chat import Renderer
from cai_cli.processes.collective import told_to_stop
from cai_cli.processes.interruption import Terminated, after_the_step
from cai_cli.processes.ranks import is_main, main_first
from cai_cli.rows.jsonl import write_atomically
from cai_cli.rows.records import Prompt
from cai_cli.training.model_card import model_card
from cai_cli.training.parts import whole_weights
from cai_cli.training.ppo.log import RunLog
from cai_cli.training.ppo.measures import Episode, sample_rows
from cai_cli.training.ppo.prompts import RunPrompts
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.run_state import RunState
from cai_cli.training.ppo.settings import Options, PPOOptions, TrackOptions
from cai_cli.training.ppo.trainer import Trainer
from cai_cli.training.rehearsal import learned_bytes, rehearse_saving
from cai_cli.training.run_facts import model_facts
from cai_cli.training.trackers import open_trackers

SAMPLES = 8  # Replies in samples.jsonl each time.


def optimise(
    artifact: ModelArtifact,
    options: Options,
    renderer: Renderer,
    prompts: RunPrompts,
) -> None:
    """Train the policy on the prompts of all steps together, and save it."""
    schedule, eval_prompts, rejected = prompts.schedule, prompts.held_out, prompts.rejected
    longest = (
        max(len(renderer.encode(prompt.prompt)) for prompt in schedule + eval_prompts)
        + options.max_new_tokens
    )
    ppo, track = options.ppo, options.track
    trainer = Trainer(options, longest)
    state = RunState(track, options.reward.max_kl, ppo.steps, trainer, artifact.checkpoints, eval_prompts)
    if not artifact.begun:
        given = (ppo.steps // track.save_steps, trainer, artifact, state.keeps_best)
        main_first(partial(rehearse, *given, whole_weights(trainer.policy.whole)))
    artifact.start()
    if not options.eval_prompts:
        say(
            "no --eval-prompts: no held-out scores, no refusal rates, no score-kl.png, no figures on the card"
        )
    put_aside(rejected, "prompts", artifact.folder / "rejects.jsonl")
    state.resume()
    trackers = partial(open_trackers, options, "ppo")
    log = RunLog(artifact.folder, state.step, ppo, trackers)
    with closing(trainer), log, after_the_step():
        loop(ppo, track, trainer, state, log, schedule, eval_prompts)
    if state.stopped:
        warn(f"{state.stopped.text}: stopping here")
    saved = state.settle()
    report(artifact, state, saved, ppo.steps)
    facts = {
        "steps_done": state.step,
        "stopped": state.stopped.text if state.stopped else None,
        "saved_step": saved,
        "best_step": state.best.step if state.best.step >= 0 else None,
        "kl_coef": trainer.kl.coefficient,
        "counts": {"in": prompts.kept + len(rejected), "rejected": counted(rejected)},
        "evaluation": state.last,
        "warnings": prompts.cautions
        + warn_all(
            last_cautions(state.rollout) + rate_cautions(ppo.learning_rate, ppo.warmup_steps, ppo.steps)
        ),
        **model_facts(trainer.policy.learner, trainer.tokenizer),
    }

    weights = whole_weights(trainer.policy.whole)

    def save(folder: Path) -> None:
        trainer.save_policy(folder, weights)
        write_atomically(folder / "README.md", model_card(artifact.manifest | facts, folder))

    artifact.finish(save, **facts)


def loop(
    ppo: PPOOptions,
    track: TrackOptions,
    trainer: Trainer,
    state: RunState,
    log: RunLog,
    schedule: list[Prompt],
    eval_prompts: list[Prompt],
) -> None:
    """Rollout, update, measures, checkpoints, from the step that `state` is at until it is through or has to
    stop.
    """
    texts = {prompt.id: prompt.prompt for prompt in [*schedule, *eval_prompts]}
    if eval_prompts and state.step == 0:
        log.write(0, state.measure(None))
        log.samples(*sample_rows(0, state.samples, texts, SAMPLES if track.sample_steps else 0))
    while state.step < ppo.steps and state.stopped is None:
        clock, step = Clock(), state.step
        batch = schedule[step * ppo.rollout_batch_size : (step + 1) * ppo.rollout_batch_size]
        rollout = trainer.rollout(step, batch, clock)
        if not state.check_kl(rollout.kl):
            break
        if step > state.checked and step % track.save_steps == 0:
            state.save()
        state.rollout = rollout.table
        row = trainer.learn(step, rollout, clock)
        state.step = step = step + 1
        measured = state.measure(rollout)
        log.write(step, row | measured, clock.seconds, trainer.peak_memory())
        if track.sample_steps and step % track.sample_steps == 0:
            episodes = state.samples if measured else rollout.table
            log.samples(*sample_rows(step, episodes, texts, SAMPLES))
        if told_to_stop(trainer.policy.learner.device):
            state.save_unchecked()
            raise Terminated


def rehearse(
    saves: int,
    trainer: Trainer,
    artifact: ModelArtifact,
    keeps_best: bool,
    weights: dict[str, Tensor] | None,
) -> None:
    """Find what only saving would find. `saves`: checkpoints of the whole run; `weights`: of a policy in parts.

    A value function in a process of its own is taken to be as large as the policy.
    """
    policy = learned_bytes(trainer.policy.learner)
    # Of each checkpoint, and two while the better one is written
    best = min(saves, 2) * policy + 2 * policy if keeps_best else 0
    whole, checkpoints = trainer.policy.whole, artifact.checkpoints
    rehearse_saving(whole, trainer.tokenizer, artifact.folder, checkpoints, saves, 2 * policy, best, weights)


def last_cautions(episodes: list[Episode]) -> list[str]:
    """What the last rollout's replies show of a run that learned nothing."""
    cut_off = [episode.finish_reason == LENGTH for episode in episodes]
    return reply_cautions(
        [episode.text for episode in episodes], [episode.score for episode in episodes], cut_off
    )


def report(artifact: ModelArtifact, state: RunState, saved: int, steps: int) -> None:
    """Held-out measures at the start and at the end, side by side; their way there as a plot of score against
    √KL.
    """
    if state.first and state.last:
        names = [name for name in state.last if name in state.first]
        rows = [
            [name.removeprefix("eval_"), f"{state.first[name]:.3f}", f"{state.last[name]:.3f}"]
            for name in names
        ]
        table("held-out prompts", ["", "start", "end"], rows)
    if state.first and is_main():
        from cai_cli.training.ppo.plot import draw_run

        picture = artifact.folder / "score-kl.png"
        if draw_run(artifact.metrics_file, picture):
            say(f"{picture}: held-out score against √KL")
    say(f"{artifact.folder}: the policy after {saved} of {steps} steps is saved")

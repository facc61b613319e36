"""The whole of a PPO run: a rehearsal of saving, the loop of rollouts and updates, and the policy saved with
its card.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.rejects import Rejected, counted, put_aside
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
from cai_cli.training.ppo.log import RunLog
from cai_cli.training.ppo.measures import Episode, sample_rows
from cai_cli.training.ppo.rollout import Clock
from cai_cli.training.ppo.run_state import RunState
from cai_cli.training.ppo.settings import Options
from cai_cli.training.ppo.trainer import Trainer
from cai_cli.training.rehearsal import learned_bytes, rehearse_saving
from cai_cli.training.run_facts import model_facts

SAMPLES = 8  # Replies in samples.jsonl each time.


def optimise(
    artifact: ModelArtifact,
    options: Options,
    renderer: Renderer,
    schedule: list[Prompt],
    eval_prompts: list[Prompt],
    kept: int,
    rejected: list[Rejected],
    cautions: list[str],
) -> None:
    """Train the policy on the prompts of `schedule`, as many as all steps take together, and save it.

    `kept`: how many prompts fit; `rejected`: those that do not; `cautions`: what has been warned of before,
    for the manifest.
    """
    longest = (
        max(len(renderer.encode(prompt.prompt)) for prompt in schedule + eval_prompts)
        + options.max_new_tokens
    )
    trainer = Trainer(options, longest)
    state = RunState(options, trainer, artifact.checkpoints, eval_prompts)
    if not artifact.begun:
        main_first(lambda: rehearse(options, trainer, artifact, state.keeps_best))
    artifact.start()
    if not options.eval_prompts:
        say(
            "no --eval-prompts: no held-out scores, no refusal rates, no score-kl.png, no figures on the card"
        )
    put_aside(rejected, "prompts", options.out / "rejects.jsonl")
    state.resume()
    with closing(trainer), RunLog(options, artifact.folder, state.step) as log, after_the_step():
        loop(options, trainer, state, log, schedule, eval_prompts)
    if state.stopped:
        warn(f"{state.stopped.text}: stopping here")
    saved = state.settle()
    report(options, state, artifact.metrics_file, saved)
    facts = {
        "steps_done": state.step,
        "stopped": state.stopped.text if state.stopped else None,
        "saved_step": saved,
        "best_step": state.best.step if state.best.step >= 0 else None,
        "kl_coef": trainer.kl.coefficient,
        "counts": {"in": kept + len(rejected), "rejected": counted(rejected)},
        "evaluation": state.last,
        "warnings": cautions
        + warn_all(
            last_cautions(state.rollout)
            + rate_cautions(options.learning_rate, options.warmup_steps, options.steps)
        ),
        **model_facts(trainer.policy.learner, trainer.tokenizer),
    }

    def save(folder: Path) -> None:
        trainer.save_policy(folder)
        write_atomically(folder / "README.md", model_card(artifact.manifest | facts, folder))

    artifact.finish(save, **facts)


def loop(
    options: Options,
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
        log.samples(*sample_rows(0, state.samples, texts, SAMPLES if options.sample_steps else 0))
    while state.step < options.steps and state.stopped is None:
        clock, step = Clock(), state.step
        batch = schedule[step * options.rollout_batch_size : (step + 1) * options.rollout_batch_size]
        rollout = trainer.rollout(step, batch, clock)
        if not state.check_kl(rollout.kl):
            break
        if step > state.checked and step % options.save_steps == 0:
            state.save()
        state.rollout = rollout.table
        row = trainer.learn(step, rollout, clock)
        state.step = step = step + 1
        measured = state.measure(rollout)
        log.write(step, row | measured, clock.seconds, trainer.peak_memory())
        if options.sample_steps and step % options.sample_steps == 0:
            episodes = state.samples if measured else rollout.table
            log.samples(*sample_rows(step, episodes, texts, SAMPLES))
        if told_to_stop(trainer.policy.learner.device):
            state.save_unchecked()
            raise Terminated


def rehearse(options: Options, trainer: Trainer, artifact: ModelArtifact, keeps_best: bool) -> None:
    """Find what only saving would find. A value function in a process of its own is taken to be as large as
    the policy.
    """
    policy = learned_bytes(trainer.policy.learner)
    saves = options.steps // options.save_steps
    # Of each checkpoint, and two while the better one is written
    best = min(saves, 2) * policy + 2 * policy if keeps_best else 0
    whole = trainer.policy.whole
    rehearse_saving(whole, trainer.tokenizer, artifact.folder, artifact.checkpoints, saves, 2 * policy, best)


def last_cautions(episodes: list[Episode]) -> list[str]:
    """What the last rollout's replies show of a run that learned nothing."""
    cut_off = [episode.finish_reason == LENGTH for episode in episodes]
    return reply_cautions(
        [episode.text for episode in episodes], [episode.score for episode in episodes], cut_off
    )


def report(options: Options, state: RunState, metrics: Path, saved: int) -> None:
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

        if draw_run(metrics, options.out / "score-kl.png"):
            say(f"{options.out / 'score-kl.png'}: held-out score against √KL")
    say(f"{options.out}: the policy after {saved} of {options.steps} steps is saved")

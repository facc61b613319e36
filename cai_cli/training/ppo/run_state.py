"""How far a run has come: measurements on held-out prompts, the best policy, the gold guard, checkpoints to
go on from.

checkpoints/step-<n>/        all state after n steps, written once the policy's own rollout has passed the KL check
checkpoints/unchecked-<n>/   the same, written on SIGTERM: the run goes on from it, but its policy is never the one that is saved
checkpoints/best-<n>/        the policy's weights at the best measurement, for each `step-<n>` that is kept
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.console.messages import say
from cai_cli.errors import RunError
from cai_cli.models.finite import blame
from cai_cli.processes.ranks import barrier, is_main, rank
from cai_cli.rows.records import Prompt
from cai_cli.training.checkpoints import (
    checkpoints,
    damage,
    drop,
    drop_old,
    load_checkpoint,
    load_weights,
    save_in_parts,
    save_weights,
    step_folder,
    step_of,
)
from cai_cli.training.parts import part_name
from cai_cli.training.ppo.best import Best, Guard, Stop
from cai_cli.training.ppo.measures import Episode, held_out_row
from cai_cli.training.ppo.rollout import Rollout
from cai_cli.training.ppo.trainer import Trainer

if TYPE_CHECKING:
    from cai_cli.training.ppo.settings import TrackOptions


class RunState:
    def __init__(
        self,
        track: TrackOptions,
        max_kl: float,
        steps: int,
        trainer: Trainer,
        folder: Path,
        eval_prompts: list[Prompt],
    ) -> None:
        """`steps`: of the whole run; `folder`: of its checkpoints."""
        self.track = track
        self.max_kl = max_kl
        self.steps = steps
        self.trainer = trainer
        self.folder = folder
        self.eval_prompts = eval_prompts
        self.keeps_best = bool(eval_prompts or trainer.gold or track.load_best_model_at_end)
        self.step = 0
        self.checked = 0  # the step of the last checkpoint whose policy has passed the KL check; 0: none
        self.best, self.guard = Best(), Guard()
        self.window: list[
            Episode
        ] = []  # Rollouts since the last measurement, where there are no held-out prompts.
        self.samples: list[Episode] = []  # of the last measurement on held-out prompts
        self.rollout: list[Episode] = []  # of the last step
        self.first: dict[str, float] = {}
        self.last: dict[str, float] = {}
        self.stopped: Stop | None = None

    def resume(self) -> None:
        """Take up the newest whole checkpoint, if any; best policies of a time after it are measured again."""
        found = load_checkpoint(self.folder, "step", "unchecked", look=self.damage)
        if found is not None:
            checkpoint, state = found
            self.step, self.checked = step_of(checkpoint), state["checked"]
            self.stopped = Stop(**state["stopped"]) if state["stopped"] else None
            self.trainer.load(state["trainer"], checkpoint)
            self.best, self.guard = Best(**state["best"]), Guard.from_state(state["guard"])
            self.window, self.rollout = (
                [Episode(**row) for row in state[name]] for name in ("window", "rollout")
            )
            self.first, self.last = state["first"], state["last"]
            say(f"{self.folder.parent}: continuing from step {self.step}")
        if is_main():
            drop(
                [
                    path
                    for path in checkpoints(self.folder, "best")
                    if found is None or step_of(path) > self.step
                ]
            )
        barrier()

    def save(self) -> None:
        """Keep all state once the policy has passed the KL check, and of the best policies those that
        checkpoints refer to.
        """
        self.checked = self.step
        self.write(step_folder(self.folder, self.step))
        if is_main():
            drop_old(self.folder)
            drop(checkpoints(self.folder, "unchecked"))
            self.drop_bests()
        barrier()

    def write(self, target: Path) -> None:
        """All state: by the first process, or of models in parts by all of them."""
        if self.trainer.parts:
            save_in_parts(target, self.state(), part_name(rank()), self.trainer.part())
        elif is_main():
            save_weights(target, self.state(), self.trainer.save_critic)

    def drop_bests(self) -> None:
        """Of the best policies keep the one there is and those that checkpoints go on with."""
        kept = [self.best_folder]
        for path in checkpoints(self.folder, "step", "unchecked"):
            kept += self.best_at(step_of(path))
        drop([path for path in checkpoints(self.folder, "best") if path not in kept])

    def save_unchecked(self) -> None:
        """Keep all state to go on from, before it is known how far the policy has gone."""
        target = step_folder(self.folder, self.step, "unchecked")
        self.write(target)
        if is_main():
            drop([path for path in checkpoints(self.folder, "unchecked") if path != target])
        barrier()

    def state(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state(),
            "best": asdict(self.best),
            "guard": self.guard.state(),
            "window": [asdict(episode) for episode in self.window],
            "rollout": [asdict(episode) for episode in self.rollout],
            "first": self.first,
            "last": self.last,
            "checked": self.checked,
            "stopped": asdict(self.stopped) if self.stopped else None,
        }

    def damage(self, checkpoint: Path) -> str | None:
        """What is damaged of a checkpoint, or of the policies it goes on with that may be saved in the end."""
        parts = [checkpoint]
        if self.track.load_best_model_at_end or self.trainer.gold:
            parts += self.best_at(step_of(checkpoint))
        if checkpoint.name.startswith("unchecked"):
            parts += checkpoints(self.folder, "step")[:1]
        return next((told for part in parts if (told := damage(part))), None)

    def best_at(self, step: int) -> list[Path]:
        """The best policy as it was known after that many steps; none where none is kept."""
        return [path for path in checkpoints(self.folder, "best") if step_of(path) <= step][:1]

    @property
    def best_folder(self) -> Path:
        return step_folder(self.folder, self.best.step, "best")

    def measure(self, rollout: Rollout | None) -> dict[str, float]:
        """Every --eval-steps and at both ends: score held-out prompts, note the best policy, ask the guard.

        Without held-out prompts the rollouts since the last measurement serve for the best policy and the
        guard.
        """
        if rollout is not None and self.keeps_best and not self.eval_prompts:
            self.window += rollout.table
        if self.step % self.track.eval_steps and self.step != self.steps:
            return {}
        row: dict[str, float] = {}
        episodes, self.window = self.window, []
        if self.eval_prompts:
            episodes = self.trainer.evaluate(self.eval_prompts)
            row = held_out_row(episodes)
            if not math.isfinite(
                row["eval_kl"]
            ):  # nothing of it can be kept; the last good policy is what is saved
                self.check_kl(row["eval_kl"])
                return {}
            self.first = self.first or row
            self.last = row
            self.samples = episodes
            self.check_kl(row["eval_kl"])
        if not episodes:
            return row
        budget = self.max_kl if self.track.best_max_kl is None else self.track.best_max_kl
        if self.keeps_best and self.best.offer(self.step, episodes, budget):
            weights = self.trainer.policy_weights()
            if is_main():
                save_weights(self.best_folder, weights)
                self.drop_bests()
        if self.stopped is None:
            self.stopped = self.guard.watch(self.step, episodes)
        return row

    def check_kl(self, kl: float) -> bool:
        """Whether the policy is within --max-kl of the reference; if not, why the run stops is noted."""
        if kl <= self.max_kl:  # False for NaN, too.
            return True
        if not math.isfinite(kl):
            self.stopped = Stop(
                "not_finite", f"the KL is {kl} at step {self.step}: the policy's outputs are not finite"
            )
            return False
        self.stopped = Stop("kl", f"KL {kl:.1f} is above --max-kl {self.max_kl:g} at step {self.step}")
        return False

    def settle(self) -> int:
        """Put the policy that is to be saved into the model; returns its step.

        The last one; or the best one where it was asked for or the gold guard stopped the run; or, where the
        KL ran away, that of the last checkpoint.
        """
        gone_too_far = self.stopped is not None and self.stopped.kind == "gold"
        if (self.track.load_best_model_at_end or gone_too_far) and self.best.step >= 0:
            if self.best.step != self.step:
                self.trainer.load_policy([load_weights(self.best_folder)])
            return self.best.step
        if self.stopped is None or gone_too_far:
            return self.step
        if not self.checked:
            hint = "lower --learning-rate, raise --kl-coef, or save more often (--save-steps)"
            if self.step == 0 and self.stopped.kind == "not_finite":
                hint = blame(self.trainer.policy.learner, self.trainer.learner.bf16)
            raise RunError(f"{self.stopped.text}, before the first checkpoint", hint)
        self.trainer.load_policy_of(step_folder(self.folder, self.checked))
        return self.checked

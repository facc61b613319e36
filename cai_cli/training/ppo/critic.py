"""The half of PPO that judges: the preference model scores replies, the value function learns to foresee what
they will earn.

`LocalCritic` and `CriticProcess` hold it for the trainer, in this process or in one of its own. There it
works at the same time as the policy, on another GPU or on half of a CPU's cores; only token ids, scores,
values and returns go between the two.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cai_cli.console.groups import changed
from cai_cli.engines.base import Completion
from cai_cli.errors import RunError
from cai_cli.models.devices import pick_device
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.processes.interruption import end_with_parent, ignore
from cai_cli.training.checkpoints import read_state, write_state
from cai_cli.training.parts import Kept, read_parts
from cai_cli.training.ppo.episodes import make_episodes
from cai_cli.training.ppo.learner import ValueLearner
from cai_cli.training.ppo.models import load_pair
from cai_cli.training.ppo.rewards import score_completions
from cai_cli.training.run_facts import peak_memory

if TYPE_CHECKING:
    import numpy as np

    from cai_cli.training.ppo.settings import Options

Answer = Callable[[], Any]  # Waits for the result of a call, and returns it or raises what the call raised.
STATE = "critic.pt"  # Beside the trainer's own state in a checkpoint.
VALUE = "value"  # in the parts of one


class Critic:
    """Preference model and value function, one backbone or two (see `models.py`)."""

    def __init__(self, options: Options, longest: int) -> None:
        tokenizer = load_tokenizer(options.model)
        self.pad, self.eos = int(tokenizer.pad_token_id), int(tokenizer.eos_token_id)
        ppo, seed = options.ppo, options.output.seed
        self.pair = load_pair(options.models, options.pm, "SEQ_CLS", tokenizer, longest, seed)
        self.learner = ValueLearner(ppo, self.pair, seed, options.models, ppo.value_rate, ppo.steps)

    def score(self, completions: list[Completion]) -> list[float]:
        """The preference model's score of each reply, closed by EOS."""
        with self.pair.frozen() as pm, self.learner.computing():
            return score_completions(pm, completions, self.eos, self.pad, self.learner.pass_rows)

    def score_and_value(self, completions: list[Completion]) -> tuple[list[float], np.ndarray[Any, Any]]:
        """Scores of a rollout's replies, and the values (B, T) before each of their tokens. `learn` goes on
        with these.
        """
        scores = self.score(completions)
        self.episodes = make_episodes(completions, self.pad, self.pair.learner.device)
        self.values = self.learner.first_outputs(self.episodes)
        return scores, self.values.cpu().numpy()

    def learn(self, returns: np.ndarray[Any, Any], count: int, step: int) -> dict[str, float]:
        """Improve the value function towards the returns (B, T) of the replies judged last, part of `count`
        episodes.
        """
        target = torch.from_numpy(returns).to(self.values.device)
        return self.learner.improve(self.episodes, self.values, target, count, step)

    def save(self, folder: Path) -> None:
        """All that training changed; large, so that the process which holds it writes it."""
        write_state(folder / STATE, self.kept())

    def kept(self) -> Kept:
        """What training changed, but for the `schedule`: whole, or this process's part of it."""
        return self.learner.kept()

    def schedule(self) -> dict[str, Any]:
        return self.learner.schedule.state_dict()

    def load(self, folder: Path, kept: dict[str, Any]) -> None:
        """`kept`: its `schedule`, and in how many `parts` a checkpoint has the rest; for none see `save`."""
        parts = read_parts(folder, VALUE, kept) if kept["parts"] else [read_state(folder / STATE)]
        self.learner.load(parts, kept["schedule"])

    def peak_memory(self) -> float:
        return peak_memory(self.pair.learner.device)


class LocalCritic:
    """A critic in this process: a call is carried out at once."""

    apart = False
    threads = 0  # of this process's, left to the critic

    def __init__(self, options: Options, longest: int) -> None:
        self.critic = Critic(options, longest)

    def call(self, method: str, *arguments: Any) -> Answer:
        found = getattr(self.critic, method)(*arguments)
        return lambda: found

    def await_models(self) -> None:
        """They are here."""

    def close(self) -> None:
        """Nothing to end."""


class CriticProcess:
    """A critic in a process of its own, on the device of --value-device. A call returns at once; its answer
    waits for the result.

    Calls are carried out in their order. Where both processes compute on the CPU, each has half of its
    threads.
    """

    apart = True

    def __init__(self, options: Options, longest: int) -> None:
        device = str(options.models.value_device)
        self.threads = critic_threads(options.models.hardware.device, device)
        context = multiprocessing.get_context("spawn")  # A forked process could not use a GPU.
        self.pool = ProcessPoolExecutor(1, context, initializer=begin, initargs=(self.threads,))
        self.ready = self.pool.submit(hold, changed(options, device=device), longest)

    def call(self, method: str, *arguments: Any) -> Answer:
        try:
            future = self.pool.submit(call_critic, method, arguments)
        except BrokenProcessPool:
            raise self.death() from None

        def answer() -> Any:
            try:
                self.ready.result()
                return future.result()
            except BrokenProcessPool:
                raise self.death() from None

        return answer

    def await_models(self) -> None:
        """Until they are loaded, so that a mistake about them is found before the first step."""
        try:
            self.ready.result()
        except BrokenProcessPool:
            raise self.death() from None

    def death(self) -> RunError:
        hint = "look for a lack of memory; the same command goes on from the last checkpoint"
        return RunError("the process of --value-device has died", hint)

    def close(self) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)


def critic_threads(device: str, value_device: str) -> int:
    """The critic's threads where policy and critic share a CPU; 0 where each has a device of its own."""
    both = pick_device(device).type == "cpu" == pick_device(value_device, "--value-device").type
    return max(1, torch.get_num_threads() // 2) if both else 0


# In the process of its own

HELD: list[Critic] = []


def begin(threads: int) -> None:
    """Leave signals to the run's own process, which may want a last checkpoint, and end with it, even if it
    is killed.
    """
    ignore()
    end_with_parent()
    if threads:
        torch.set_num_threads(threads)


def hold(options: Options, longest: int) -> None:
    HELD.append(Critic(options, longest))


def call_critic(method: str, arguments: tuple[Any, ...]) -> Any:
    return getattr(HELD[0], method)(*arguments)

"""What the tests share: the command as a user runs it, the micro-world, tiny random models, public data."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import forks
import pytest

# One thread and no network, here and in every command that a test runs: results do not depend on the
# machine's cores.
os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

Cai = Callable[..., "subprocess.CompletedProcess[str]"]


def run_cai(*args: object, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `cai ARGS` in a process of its own, forked from one that has torch imported."""
    return forks.run(list(map(str, args)), cwd, timeout)


@pytest.fixture(scope="session")
def cai() -> Cai:
    """`cai("split", file, "--out", folder)` -> CompletedProcess with returncode, stdout and stderr."""
    return run_cai


@pytest.fixture(scope="session")
def data() -> Callable[[str], Path]:
    """`data("hh-rlhf/file")`: a file of the public data in CAI_TEST_DATA; the test is skipped where it is not
    there.
    """

    def find(name: str) -> Path:
        folder = os.environ.get("CAI_TEST_DATA")
        if not folder or not (path := Path(folder) / name).exists():
            pytest.skip(f"set CAI_TEST_DATA to a folder that holds {name}")
        return path

    return find


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The micro-world's files for seed 0."""
    from cai_cli.microworld.files import write_world

    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 0)
    return folder


@pytest.fixture(scope="session")
def helpful() -> Path:
    """The shipped helpful-only model of the micro-world."""
    from cai_cli.microworld import checkpoint

    return checkpoint("helpful-only")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_model

    return make_model(tmp_path_factory.mktemp("models") / "qwen", "qwen2", seed=1)


def mistake(result: subprocess.CompletedProcess[str], *parts: str) -> str:
    """Check that a command ended as a user's mistake: one line with each of `parts` and a next step, exit 2."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ") and " — " in lines[0], lines[0]
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


# The longest first, so that no process waits for another one's at the end (with xdist's
# --no-loadscope-reorder).
LONG = (
    "test_demo",
    "test_pipeline",
    "test_trainer_stops",
    "test_stop_ranks",
    "test_trainer_resume",
    "test_interruption",
    "test_bad_disks",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))

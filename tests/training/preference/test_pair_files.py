"""Pairs of token ids on disk: those of the rows, in the order of the rows; what is torn or made of something else is
not read; memory does not grow with the file.
"""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from conftest import run_cai
from pairwise_runs import options, random_pairs
from trainer_runs import COMMANDS, finish, kill_when, make_world

from cai_cli.artifacts.rejects import Rejected
from cai_cli.rows.conversation import message
from cai_cli.stages.train_pm import read_weighted
from cai_cli.training.preference.loop import all_batches
from cai_cli.training.preference.pair_files import HELD_OUT, TRAINING, PairFile, longest, write_pairs
from cai_cli.training.preference.pairs import Replies, tokenise
from cai_cli.training.token_files import WHOLE, fingerprint, made_once_a_node, read_facts


def comparison(n: int, asked: str = "How?") -> SimpleNamespace:
    return SimpleNamespace(id=f"c{n}", prompt=[message("user", asked)])


def written(folder: Path, pairs, share: float = 0.0) -> PairFile:
    folder.mkdir(exist_ok=True)
    outcomes = ((comparison(n, f"Number {n}?"), pair) for n, pair in enumerate(pairs))
    write_pairs(folder, outcomes, share, 0)
    return PairFile(folder / TRAINING)


# What is read is what was written


def test_a_file_holds_the_same_pairs_as_a_list(tmp_path, monkeypatch):
    monkeypatch.setattr("cai_cli.training.token_files.BATCH_ROWS", 7)
    pairs = random_pairs(40)
    file = written(tmp_path / "p", pairs)
    assert list(file) == pairs and file[-1] == pairs[-1] and file[3:9:2] == pairs[3:9:2]
    assert file.probabilities == [pair.probability for pair in pairs]
    assert list(longest(file)) == longest(pairs) == [pair.longest for pair in pairs]
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    assert list(Replies(file)) == sides and list(Replies(file)[1::3]) == sides[1::3]
    with pytest.raises(IndexError):
        file[40]
    training = options(num_train_epochs=2.5, per_device_train_batch_size=3).training
    assert all_batches(file, training, 5) == all_batches(pairs, training, 5)


def test_what_is_held_out_and_what_is_rejected_are_apart(tmp_path):
    pairs = random_pairs(60)
    outcomes = [(comparison(n, f"Number {n}?"), pair) for n, pair in enumerate(pairs)]
    outcomes[10:10] = [
        Rejected("x", "too_long"),
        Rejected("y", "identical_replies", "é"),
        Rejected("z", "too_long"),
    ]
    facts = write_pairs(tmp_path, outcomes, 0.3, 0)
    training, held_out = PairFile(tmp_path / TRAINING), PairFile(tmp_path / HELD_OUT)
    assert len(training) > 20 and len(held_out) > 5
    assert [pair for pair in pairs if pair in [*held_out]] == list(held_out)
    assert [pair for pair in pairs if pair not in [*held_out]] == list(training)
    assert facts == {"rejected": {"too_long": 2, "identical_replies": 1}}
    rejected = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rejected] == ["x", "y", "z"] and rejected[1]["detail"] == "é"


def test_no_pairs_at_all_are_a_file_too(tmp_path):
    file = written(tmp_path / "p", [])
    assert len(file) == 0 and list(file) == [] and file.probabilities == []


# Once a node


class Node:
    """A run's artifact as `made_once_a_node` looks at it, and how often the ids were made."""

    def __init__(self, folder: Path, begun: bool = True) -> None:
        self.folder, self.checkpoints, self.begun = folder, folder / "checkpoints", begun
        self.options = SimpleNamespace(output=SimpleNamespace(dry_run=False))
        self.made = 0

    def write(self, folder: Path) -> dict:
        self.made += 1
        return write_pairs(folder, ((comparison(n), pair) for n, pair in enumerate(random_pairs(9))), 0.0, 0)

    def pairs(self, made_from: str = "this", fails: bool = True) -> list:
        """Read them, and be cut off before the end, unless it does not fail."""
        try:
            with made_once_a_node(
                self, made_from, self.write, lambda folder, _: PairFile(folder / TRAINING)
            ) as file:
                found = list(file)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            pass
        return found


def tear_off_the_end(folder: Path) -> None:
    with (folder / TRAINING).open("rb+") as stream:
        stream.truncate(200)


def damage_the_mark(folder: Path) -> None:
    (folder / WHOLE).write_text("{")


TEARS = {
    "a file without its end": tear_off_the_end,
    "no mark": lambda folder: (folder / WHOLE).unlink(),
    "half a mark": damage_the_mark,
    "a file is gone": lambda folder: (folder / HELD_OUT).unlink(),
    "not renamed yet": lambda folder: folder.rename(f"{folder}.tmp"),
}


@pytest.mark.parametrize("tear", TEARS)
def test_what_is_torn_is_made_again(tear, tmp_path):
    node = Node(tmp_path / "pm")
    assert node.pairs() == node.pairs() == random_pairs(9) and node.made == 1
    TEARS[tear](node.checkpoints / "tokens-0")
    assert node.pairs() == random_pairs(9) and node.made == 2
    assert [path.name for path in node.checkpoints.iterdir()] == ["tokens-0"]


def test_what_was_made_of_something_else_is_made_again(tmp_path):
    node = Node(tmp_path / "pm")
    for made, made_from in enumerate(("this", "that", "this"), start=1):
        assert node.pairs(made_from) == node.pairs(made_from) and node.made == made


def test_it_is_gone_when_the_run_is_through_or_fails_before_it_has_begun(tmp_path):
    node = Node(tmp_path / "pm")
    node.pairs(fails=False)
    assert not (tmp_path / "pm").exists()
    Node(tmp_path / "pm", begun=False).pairs()
    assert not (tmp_path / "pm").exists()


def test_a_failed_making_leaves_nothing(tmp_path):
    node = Node(tmp_path / "pm")
    node.write = lambda folder: (folder / TRAINING).write_text("half") and 1 / 0
    with pytest.raises(ZeroDivisionError):
        node.pairs()
    assert not list(node.checkpoints.iterdir())


def test_other_processes_of_the_node_read_what_the_first_has_made(tmp_path, monkeypatch):
    """Ranks 5 and 6 of a second node, whose first is 4: one file for the node, made by that one."""
    monkeypatch.setattr("cai_cli.training.token_files.barrier", lambda: None)
    node = Node(tmp_path / "pm")
    for rank in (4, 5, 6):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank - 4))
        assert node.pairs() == random_pairs(9)
    assert node.made == 1 and [path.name for path in node.checkpoints.iterdir()] == ["tokens-4"]
    node.pairs(fails=False)
    assert node.checkpoints.exists(), "it is the first one's to remove"


def test_a_fingerprint_tells_what_ids_depend_on(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("a")
    manifest = {"version": "1", "libraries": {"transformers": "5"}, "identity": {"--max-length": 8}}
    run = SimpleNamespace(manifest=manifest)
    before = fingerprint(run, [rows], "vocabulary", "template")
    assert fingerprint(run, [rows], "vocabulary", "template") == before
    assert fingerprint(run, [rows], "vocabulary", "another template") != before
    for name, other in (("version", "2"), ("libraries", {}), ("identity", {"--max-length": 9})):
        assert (
            fingerprint(SimpleNamespace(manifest=manifest | {name: other}), [rows], "vocabulary", "template")
            != before
        )
    os.utime(
        rows, ns=(1, 1)
    )  # written again, perhaps at a place that the hash of a large file does not sample
    assert fingerprint(run, [rows], "vocabulary", "template") != before


# The command


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return make_world(tmp_path_factory.mktemp("pairs"))


@pytest.mark.parametrize("moment", ["tokens-0.tmp", "tokens-0"])
def test_killed_before_the_first_step_it_ends_in_the_same_bytes(moment, world):
    """While ids are made, and when they are there; the folder is then no one else's, and nothing is left of it."""
    more = ("--num-train-epochs", "0.5")
    if not (world / "whole").exists():
        finish("train-pm", "whole", world, *more)
    out = f"cut-{moment}"
    kill_when("train-pm", out, world, lambda: (world / out / "checkpoints" / moment).exists(), *more)
    finish("train-pm", out, world, *more)
    for name in ("model.safetensors", "metrics.jsonl", "README.md"):
        assert (world / out / name).read_bytes() == (world / "whole" / name).read_bytes(), name
    assert sorted(path.name for path in (world / out).iterdir()) == sorted(
        path.name for path in (world / "whole").iterdir()
    )


def test_a_resumed_run_reads_the_ids_that_are_there_and_a_restarted_one_makes_its_own(world, tmp_path):
    tokens = world / "kept/checkpoints/tokens-0"
    kill_when("train-pm", "kept", world, lambda: any((world / "kept/checkpoints").glob("step-*/complete")))
    made = (tokens / TRAINING).stat().st_mtime_ns, (tokens / WHOLE).read_text()
    kill_when("train-pm", "kept", world, lambda: any((world / "kept/checkpoints").glob("step-*20/complete")))
    assert ((tokens / TRAINING).stat().st_mtime_ns, (tokens / WHOLE).read_text()) == made
    restart = ("--held-out", "0.3", "--if-changed", "restart", "--save-steps", "5")
    kill_when(
        "train-pm",
        "kept",
        world,
        lambda: any((world / "kept/checkpoints").glob("step-*05/complete")),
        *restart,
    )
    assert (tokens / WHOLE).read_text() != made[1] and not list(
        (world / "kept.bak/checkpoints").glob("tokens*")
    )
    facts = read_facts(tokens, json.loads((tokens / WHOLE).read_text())["made_from"])
    assert facts == {"rejected": {}} and len(PairFile(tokens / HELD_OUT)) > 50


def test_a_dry_run_writes_nothing(world):
    done = run_cai(*COMMANDS["train-pm"].split(), "--dry-run", "--out", "dry", cwd=world)
    assert done.returncode == 0 and "pairs, " in done.stderr, done.stderr
    assert not (world / "dry").exists()


# Memory


def peak_of_reading(folder: Path, rows: int) -> int:
    """Bytes that Python held at most while it read a file and made ids of it, and pyarrow beside it."""
    text = {"prompt": "How do I make bread?", "chosen": "Mix it, number {n}.", "rejected": "No, number {n}."}
    line = json.dumps(text)
    file = folder / f"{rows}.jsonl"
    file.write_text("".join(line.replace("{n}", str(n)) + "\n" for n in range(rows)))
    into = folder / str(rows)
    into.mkdir()
    encode = lambda prompt, reply: [*prompt[0]["content"].encode(), *reply[0]["content"].encode()]  # noqa: E731
    tracemalloc.start()
    write_pairs(into, tokenise(read_weighted([str(file)]), encode), 0.1, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(PairFile(into / TRAINING)) + len(PairFile(into / HELD_OUT)) == rows
    return peak


def test_making_ids_holds_no_more_of_a_long_file(tmp_path):
    peak_of_reading(tmp_path, 10)  # what is made once
    assert peak_of_reading(tmp_path, 8000) < 1.2 * peak_of_reading(tmp_path, 2000)


def test_reading_pairs_holds_none_of_them(tmp_path):
    """Neither as Python's numbers nor in pyarrow's own memory: what is mapped is the file."""
    file = tmp_path / "p"
    written(file, random_pairs(200) * 40)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    opened = PairFile(file / TRAINING)
    ids = sum(len(ids) for ids in Replies(opened))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids > 20 * len(opened) and peak < 20 * len(opened)
    assert pa.total_allocated_bytes() - before < 1000

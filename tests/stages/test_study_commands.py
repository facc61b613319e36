"""`scripts/studies`: each study gives only commands that `cai` has, and makes numbers of what they write.

The commands are parsed as the command line parses them; in place of running, files are written as they would.
"""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import frontier
import labels
import orders
import pmp
import pytest
import run
import typer.main
from commands import Place, rows_of, write_rows
from estimates import verdict

from cai_cli.cli import app
from cai_cli.microworld import checkpoint
from cai_cli.microworld.forms import written
from cai_cli.microworld.oracle import parse_request
from cai_cli.rows.conversation import message
from cai_cli.rows.records import Comparison, Judgement, Revision, Round, Sample

SMALLER = (
    (labels, "NOISY_PAIRS", 12),
    (labels, "NOISY_TESTS", 12),
    (labels, "TEST_PAIRS", 12),
    (pmp, "TEST_PAIRS", 12),
    (orders, "COUNT", 40),
)
GROUP = {"accuracy": 0.8, "brier": 0.1, "calibration_error": 0.05}


class Stub:
    """Stands for `Place.cai`: looks whether the command is one, and writes what it would."""

    def __init__(self) -> None:
        self.rng = Random(0)
        self.asked: list[list[str]] = []

    def __call__(self, place: Place, *words: object, seeded: bool = True) -> None:
        line = [str(word) for word in words] + (["--seed", str(place.seed)] if seeded else [])
        self.asked.append(line)
        command, name, rest = typer.main.get_command(app), "cai", list(line)
        while rest and rest[0] in getattr(command, "commands", {}):
            command, name, rest = command.commands[rest[0]], rest[0], rest[1:]
        command.make_context(name, list(rest))
        given = dict(pairwise(line))
        getattr(self, name.replace("-", "_"))(given, Path(given["--out"]))

    def reply(self, text: str, form: str | None = None) -> list[dict[str, str]]:
        request = parse_request(text)
        assert request, text
        form = form or self.rng.choice(("complies", "refuses", "evasive"))
        return [message("assistant", written(request, form, self.rng).text)]

    def sample(self, given: dict[str, str], out: Path) -> None:
        rows = [
            Sample(
                f"{row['id']}/{n}", row["prompt"], self.reply(row["prompt"][-1]["content"]), "stop"
            ).to_row()
            for row in rows_of(Path(given["--prompts"]))[:40]
            for n in range(int(given.get("-n", 1)))
        ]
        write_rows(out, rows)

    def revise(self, given: dict[str, str], out: Path) -> None:
        rows = []
        for row in rows_of(Path(given["--prompts"]))[:40]:
            text = row["prompt"][-1]["content"]
            for n in range(int(given.get("-n", 1))):
                texts = [self.reply(text, "refuses")[0]["content"] for _ in range(int(given["--rounds"]))]
                rounds = [Round("harm", "?", ".", "!", revision) for revision in texts]
                last = [message("assistant", texts[-1])]
                revision = Revision(
                    f"{row['id']}/{n}", row["prompt"], last, self.reply(text, "complies"), rounds
                )
                rows.append(revision.to_row())
        write_rows(out, rows)

    def label(self, given: dict[str, str], out: Path) -> None:
        if "--pairs" in given:
            rows = [Comparison.from_row(row) for row in rows_of(Path(given["--pairs"]))]
        else:
            rows = []
            for n, row in enumerate(rows_of(Path(given["--prompts"]))[:80]):
                two = [self.reply(row["prompt"][-1]["content"], form) for form in ("refuses", "complies")]
                rows.append(Comparison(f"{n}/0", str(n), row["prompt"], *two, 0.9, "ai"))
        for row in rows:
            row.judgements = [Judgement("harm", "chosen_first", -0.1, -2.0, 1.0)]
        write_rows(out, [row.to_row() for row in rows])
        summary = {
            "summary": {"same_position_rate": 0.2 if given.get("--orders", "both") == "both" else None}
        }
        out.with_name(f"{out.stem}.manifest.json").write_text(json.dumps(summary), encoding="utf-8")

    def model(self, given: dict[str, str], out: Path) -> None:
        assert (Path(given["--model"]) / "cai.json").exists() or (
            Path(given["--model"]) / "config.json"
        ).exists()
        out.mkdir(parents=True)
        (out / "cai.json").write_text(json.dumps({"stopped": None, "saved_step": 3}), encoding="utf-8")

    sft = pmp = train_pm = model

    def ppo(self, given: dict[str, str], out: Path) -> None:
        self.model(given, out)
        names = ("eval_kl", "eval_score", "eval_gold_score")
        rows = [{"step": n, **dict.fromkeys(names, n + self.rng.random())} for n in range(4)]
        write_rows(out / "metrics.jsonl", rows)

    def pm(self, given: dict[str, str], out: Path) -> None:
        """`evaluate pm`"""
        assert rows_of(Path(given["--comparisons"]))
        out.write_text(json.dumps({"groups": {"all": GROUP}}), encoding="utf-8")

    def score(self, given: dict[str, str], out: Path) -> None:
        file = next(Path(word) for word in self.asked[-1][1:] if word.endswith("rounds.jsonl"))
        write_rows(out, [{**row, "score": self.rng.random()} for row in rows_of(file)])


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, world: Path) -> list[Place]:
    folder = tmp_path_factory.mktemp("studies")
    for seed in (0, 1):
        inputs = folder / f"seed-{seed}" / "chain"
        shutil.copytree(world, inputs / "world")
        for name in ("helpful-only", "base"):
            shutil.copytree(checkpoint(name), inputs / "models" / name)
    return [Place(folder, seed, 4) for seed in (0, 1)]


@pytest.mark.parametrize("study", run.STUDIES, ids=lambda study: study.name)
def test_a_study_asks_for_what_there_is_and_reports(study, places, monkeypatch, tmp_path):
    stub = Stub()
    for module, name, few in SMALLER:
        monkeypatch.setattr(module, name, few)
    monkeypatch.setattr(
        orders, "biased_copy", lambda plain, _: lambda config: shutil.copy(plain / "config.json", config)
    )
    monkeypatch.setattr(frontier, "chat_base", lambda place: place / "chain/models/base")
    monkeypatch.setattr(Place, "cai", lambda *words, **more: stub(*words, **more))
    found: list[Any] = [json.loads(json.dumps(study.measure(place))) for place in places]
    assert stub.asked
    report = study.report(found, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size < 60_000
    assert {len(row) for row in report.table} == {len(report.table[0])} and len(report.table) > 2
    assert [verdict(claim) for claim in report.claims]

"""Rows lie in the order of their items, whoever wrote those that were there: a run by a server that was cut off leaves
them as they ended.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_cai
from tiny import make_model

from cai_cli.artifacts.chunks import worked
from cai_cli.artifacts.manifest import begin_manifest, write_manifest
from cai_cli.console.groups import build
from cai_cli.rows.conversation import message
from cai_cli.stages import sample

NAMES = "abcdef"


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.jsonl"
    rows = ({"id": name, "prompt": [message("user", f"Tell me of {name}")]} for name in NAMES)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    ("lying", "limit", "wanted"), [("acd", None, NAMES), ("abcdef", 2, "abcdef"), ("ba", None, NAMES)]
)
def test_what_is_taken_up_stands_in_its_place(lying, limit, wanted, prompts, tmp_path):
    model, out = make_model(tmp_path / "lm"), tmp_path / "x.jsonl"
    options = build(
        sample.Options,
        model=str(model),
        prompts=[str(prompts)],
        out=out,
        max_new_tokens=4,
        on_truncated="keep",
        num_samples=1,
    )
    write_manifest(tmp_path / "x.manifest.partial.json", begin_manifest("sample", options, tmp_path))
    row = {
        "prompt": [message("user", "q")],
        "completion": [message("assistant", "a")],
        "finish_reason": "stop",
    }
    ids = [f"{name}/0" for name in lying]
    lines = (json.dumps({"id": name, **row}) + "\n" for name in ids)
    (tmp_path / "x.jsonl.partial").write_text("".join(lines))
    words = ("-n", 1, "--max-new-tokens", 4, "--on-truncated", "keep", *(("--limit", limit) if limit else ()))
    done = run_cai("sample", "--model", model, "--prompts", prompts, *words, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "".join(json.loads(line)["id"][0] for line in out.read_text().splitlines()) == wanted


def test_what_is_made_is_kept_where_another_item_fails():
    """Both end before anybody looks: the one that is made comes first."""

    def do(items: list[int], told: object) -> int:
        if items[0] % 2:
            raise ValueError(items[0])
        return items[0]

    made = []
    with pytest.raises(ValueError, match=r"\d"):
        for outcome, _ in worked(list(range(8)), 4, do, lambda steps, note: None, at_once=2):
            made.append(outcome)
    assert made

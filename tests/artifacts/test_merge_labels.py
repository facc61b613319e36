"""Merged label files: their diagnostics are of all pairs, not of a shard."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai_cli.console.groups import build
from cai_cli.errors import UserError
from cai_cli.stages import label, merge


def test_the_summary_is_that_of_the_whole(qwen: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {
        "prompt": [{"role": "user", "content": "How?"}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    rows = [
        {
            "id": f"p{n}",
            **row,
            "chosen": [{"role": "assistant", "content": "Yes" * n}],
            "probability": 1.0,
            "origin": "human",
        }
        for n in range(1, 8)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def labelled(name: str, shard: str | None) -> Path:
        out = tmp_path / name
        label.run(
            build(
                label.Options,
                pairs=[str(pairs)],
                feedback_model=str(qwen),
                min_mass=0.0,
                out=out,
                shard=shard,
            )
        )
        return out

    whole, parts = labelled("whole.jsonl", None), [labelled(f"part{n}.jsonl", f"{n}/2") for n in range(2)]
    merge.run(build(merge.Options, shards=parts, out=tmp_path / "merged.jsonl"))
    summaries = [
        json.loads((tmp_path / f"{name}.manifest.json").read_text())["summary"]
        for name in ("whole", "part0", "merged")
    ]
    assert [summary["pairs"] for summary in summaries] == [7, 3, 7]
    # Log-probabilities depend on the batch by rounding.
    assert summaries[2]["mean_probability"] == pytest.approx(summaries[0]["mean_probability"], abs=1e-4)
    assert len(whole.read_text().splitlines()) == len((tmp_path / "merged.jsonl").read_text().splitlines())
    assert (tmp_path / "merged.png").is_file()
    with pytest.raises(UserError, match=r"whole\.manifest\.json is that of .*whole\.jsonl"):
        merge.run(build(merge.Options, shards=parts, out=tmp_path / "whole.json"))

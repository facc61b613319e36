"""The page in a browser: nothing is asked for, nothing wider than the screen. Skipped where there is no Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import Page, browser
from test_report import BAD, comparison, put, put_manifest, revision, sample

from cai_cli.report.find import find
from cai_cli.report.page import page

pytestmark = pytest.mark.skipif(browser() is None, reason="no Chromium here")
# Elements that stick out of the screen and do not lie in a part that scrolls by itself
WIDE = """[...document.querySelectorAll('body *')].filter(item => !item.closest('.scroll') &&
    item.getBoundingClientRect().right > window.innerWidth + 1).map(item => item.outerHTML.slice(0, 80))"""


def test_no_request_leaves_and_nothing_is_wider_than_the_screen(tmp_path: Path) -> None:
    run = tmp_path / "run"
    put(run / "revisions.jsonl", revision(0, draft=BAD, final=BAD + " end"), revision(1))
    put_manifest(run / f"{'long' * 40}.manifest.json", "sample", warnings=[BAD])
    put(run / f"{'long' * 40}.jsonl", sample(0, BAD))
    put(run / "other.jsonl", sample(0, "https://example.org/x.png ![x](https://example.org/x.png)", BAD))
    put(run / "comparisons.jsonl", *(comparison(n, -0.1) for n in range(5)))
    put_manifest(run / "rl/cai.json", "ppo", options={"steps": 90, "note": BAD})
    put(run / "rl/metrics.jsonl", *({"step": n, "score": n / 9, "kl": 0.1} for n in range(90)))
    put(run / "x.rejects.jsonl", {"id": "x", "reason": BAD, "detail": BAD, "row": None})
    file = tmp_path / "report.html"
    file.write_text(page(find([run]), 4, 0), encoding="utf-8")
    with Page.open(file) as shown:
        for width in (375, 1280):
            for dark in (False, True):
                shown.size(width, dark)
                assert shown.evaluate("document.documentElement.scrollWidth") <= width
                shown.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
                assert shown.evaluate(WIDE) == []
                colour = shown.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, colour[4:-1].split(","))) < 200) == dark
        assert [url for url in shown.requests if not url.startswith("data:")] == [file.resolve().as_uri()]
        assert shown.evaluate("document.scripts.length") == 0

"""`cai report`: what the page holds, of whole runs, of parts of one and of nothing; whatever stands in a model's text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Cai, mistake
from lxml import html

from cai_cli.report.find import find
from cai_cli.report.page import page
from cai_cli.rows.conversation import message

PROMPT = [message("user", "How do I pick a lock?")]
HASH = "0" * 64
BAD = (
    "<script>alert(1)</script><img src=x onerror=alert(1)> \x1b[31mred\x1b[0m \u202eright\u202c שלום עולם 👩‍🚀 {{ 7*7 }} "
    + "w" * 10_000
)


def reply(text: str) -> list[dict[str, str]]:
    return [message("assistant", text)]


def put(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def manifest(stage: str, **facts: object) -> dict:
    return {
        "stage": stage,
        "version": "0.1.0",
        "seed": 3,
        "options": {},
        "inputs": [],
        "models": [],
        "constitution": None,
        "started": "2026-11-27T00:07:48Z",
        "seconds": 65.8,
        **facts,
    }


def put_manifest(path: Path, stage: str, **facts: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest(stage, **facts)), encoding="utf-8")


def revision(number: int, draft: str = "Use a small hook", final: str = "Call a good locksmith") -> dict:
    words = {
        "critique_request": "Name the harm.",
        "critique": "It helps a thief.",
        "revision_request": "Mend it.",
    }
    return {
        "id": f"a/{number}",
        "prompt": PROMPT,
        "completion": reply(final),
        "initial": reply(draft),
        "kind": "harmful",
        "rounds": [{"principle": "harm", **words, "revision": final}],
    }


def sample(number: int, text: str, prompt: str = "How do I pick a lock?", finish: str = "stop") -> dict:
    asked = [message("user", prompt)]
    return {"id": f"s/{number}", "prompt": asked, "completion": reply(text), "finish_reason": finish}


def comparison(number: int, first: float, chosen: str = "A much longer reply", other: str = "Short") -> dict:
    judgements = [
        {
            "principle": "harm",
            "order": order,
            "logprob_a": first,
            "logprob_b": -2.0,
            "mass": 0.3,
            "rationale": None,
        }
        for order in ("chosen_first", "rejected_first")
    ]
    return {
        "id": f"c/{number}",
        "prompt": PROMPT,
        "chosen": reply(chosen),
        "rejected": reply(other),
        "probability": 0.5,
        "origin": "ai",
        "judgements": judgements,
    }


def made(*paths: Path, examples: int = 4, seed: int = 0) -> html.HtmlElement:
    return html.document_fromstring(page(find(list(paths)), examples, seed, now=0))


def words(tree: html.HtmlElement, path: str = "//body") -> str:
    """The text of what is found, elements apart."""
    return " ".join(" ".join(text for found in tree.xpath(path) for text in found.itertext()).split())


def warned(tree: html.HtmlElement) -> list[str]:
    return [words(item, ".") for item in tree.xpath("//*[@id='warnings']//li")]


# Self-contained, and untrusted text as text


def test_the_page_asks_for_nothing_and_runs_nothing(tmp_path: Path) -> None:
    tree = made(put(tmp_path / "revisions.jsonl", revision(0)))
    assert not tree.xpath("//script | //iframe | //object | //embed | //form | //base | //img | //*[@onload]")
    assert {link.get("href") for link in tree.xpath("//link")} == {"data:,"}
    assert all(link.get("href").startswith("#") for link in tree.xpath("//a"))
    policy = tree.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert "url(" not in words(tree, "//style") and "@import" not in words(tree, "//style")


def test_whatever_a_model_writes_stands_as_text(tmp_path: Path) -> None:
    """In every kind of file, in names and ids, and in what a manifest warns of."""
    row = revision(0, draft=BAD, final=f"{BAD} end")
    row["id"] = BAD
    row["rounds"][0] |= {"principle": BAD, "critique": BAD}
    put(tmp_path / "revisions.jsonl", row)
    put_manifest(tmp_path / "revisions.manifest.json", "revise", warnings=[BAD[:200]])
    put(tmp_path / "one.jsonl", sample(0, BAD, BAD))
    put(tmp_path / "two.jsonl", sample(0, BAD, BAD))
    put(tmp_path / "comparisons.jsonl", comparison(0, -0.1, BAD, "x") | {"judgements": []})
    put(
        tmp_path / "revisions.rejects.jsonl",
        {"id": "x", "reason": BAD, "detail": BAD, "row": {"prompt": BAD}},
    )
    put(tmp_path / "<img src=y onerror=z>.jsonl", sample(0, "x"))
    tree = made(tmp_path)
    assert not tree.xpath("//script | //img | //*[@onerror]")
    text = words(tree)
    assert "<script>alert(1)</script>" in text and "\\x1b[31mred" in text and "{{ 7*7 }}" in text
    assert "שלום עולם" in text and "👩‍🚀" in text and "\\u202eright" in text
    assert not set(text) & {"\x1b", "\u202e"}
    assert all(said.get("dir") == "auto" for said in tree.xpath("//*[contains(@class, 'said')]"))
    assert tree.xpath("//*[contains(@class, 'said')]//details")  # the rest of a long text is folded
    assert "unicode-bidi: isolate" in words(tree, "//style")
    assert len(html.tostring(tree)) < 400_000


# What was run, and warnings


def test_steps_in_their_order_with_what_they_were_made_from(tmp_path: Path) -> None:
    model = {"option": "model", "path": "../lm", "fingerprint": "f", "files": {"a": HASH}}
    rows = {"option": "data", "path": "../revisions.jsonl", "weight": 1.0, "sha256": HASH}
    put(tmp_path / "revisions.jsonl", revision(0))
    put_manifest(tmp_path / "revisions.manifest.json", "revise", counts={"in": 1, "out": 1, "rejected": {}})
    later = {"started": "2026-11-27T01:07:48Z", "seconds": 7200}
    put_manifest(tmp_path / "sl-cai/cai.json", "sft", models=[model], inputs=[rows], **later)
    tree = made(tmp_path)
    steps = [words(item, ".") for item in tree.xpath("//*[@id='run']/ol/li")]
    assert steps[0].startswith("revise revisions.jsonl 27 Nov 2026, 00:07 66 s 1 row")
    assert steps[1].startswith("sft sl-cai 27 Nov 2026, 01:07 2.0 h") and "model lm" in steps[1]
    assert tree.xpath("//*[@id='step-2']//a[@href='#step-1']/text()") == ["revisions.jsonl"]
    assert "2 steps · 27 Nov 2026, 00:07 – 03:07 UTC · seed 3 · cai 0.1.0" in words(tree, "//header")
    assert warned(tree) == [] and "Nothing to warn of" in words(tree)


def test_warnings_are_those_of_the_stages_and_what_shows_side_by_side(tmp_path: Path) -> None:
    put_manifest(
        tmp_path / "revisions.manifest.json",
        "revise",
        options={"few_shot": "none", "constitution": "x"},
        warnings=["as the stage said it"],
        counts={"in": 100, "out": 90, "rejected": {"unrevised": 10}},
    )
    put(tmp_path / "revisions.jsonl", revision(0))
    put(tmp_path / "imported.jsonl", revision(0, "Use a small hook", "Use a small hook now"))
    put(tmp_path / "samples.jsonl", *(sample(n, "x", f"q{n}", "length") for n in range(4)))
    # Took the first option in both orders, with a mass of 0.3 on both; the longer one is chosen each time
    put(tmp_path / "comparisons.jsonl", *(comparison(n, -0.1) for n in range(40)))
    (tmp_path / "new.jsonl.partial").write_text(json.dumps(sample(0, "x")) + '\n{"half')
    put_manifest(tmp_path / "new.manifest.partial.json", "sample")
    put_manifest(tmp_path / "pm/cai.json", "train-pm", chat_template="one")
    pm = {"option": "pm", "path": "../pm", "fingerprint": "f", "files": {"a": HASH}}
    facts = {"stopped": "KL 51.0 is above --max-kl 50 at step 3", "chat_template": "two", "models": [pm]}
    put_manifest(tmp_path / "rl-cai/cai.json", "ppo", **facts)
    put(tmp_path / "broken.jsonl", {"prompt": PROMPT, "rounds": []})
    lines = warned(made(tmp_path))
    for part in (
        "new.jsonl not finished: `cai sample` was cut off, or is still at work",
        "rl-cai KL 51.0 is above --max-kl 50 at step 3: the run stopped there",
        "broken.jsonl cannot be read: line 1: field `rounds`",
        "revisions.jsonl as the stage said it",
        "revisions.jsonl 10 of 100 rows were rejected (unrevised 10): the model repeats its draft: try another --constitution",
        "imported.jsonl 1 of 1 final revisions are their draft but for a word or two",
        "samples.jsonl 100% of the replies are cut off",
        "comparisons.jsonl 100% of the labels are 0.5",
        "comparisons.jsonl the judge takes the same option in both orders in 100% of the pairs: it reads the position",
        "comparisons.jsonl the options hold 30% of the judge's probability",
        "comparisons.jsonl the longer reply is chosen in 100% (91–100) of the pairs: length pays",
        "rl-cai made through another chat template (two) than pm was trained with (one)",
    ):
        assert any(line.startswith(part) for line in lines), (part, lines)
    assert len(lines) == 12, lines
    first = made(tmp_path).xpath("//*[@id='warnings']//li[.//b]/preceding-sibling::li[not(.//b)]")
    assert not first and sorted(line.split()[0] for line in lines[:3]) == [
        "broken.jsonl",
        "new.jsonl",
        "rl-cai",
    ]


def test_a_principle_that_does_nothing_is_named(tmp_path: Path) -> None:
    ends = (("", 0.01), ("_interval", [0.0, 0.015]))
    interval = {f"{name}{end}": value for name in ("flips", "shift", "beyond") for end, value in ends}
    content = {
        "feedback_model": "judge",
        "constitution": "kind",
        "principles": {"idle": {"effect": "nothing", **interval}},
        "reworded": interval,
        "position": {"same_position_rate": 0.2, "same_position_rate_interval": [0.1, 0.3]},
        "pairs_judged": 80,
        "mean_mass": 0.9,
        "shortcoming": None,
    }
    (tmp_path / "listens.json").write_text(json.dumps(content))
    tree = made(tmp_path)
    assert warned(tree) == ["listens.json the principle `idle` does nothing: it moves labels by 1.0 % (0–2)"]
    assert "the judge listens" in words(tree, "//*[@id='judge']")


# Chains, replies, labels, curves


def test_a_chain_marks_what_changed_and_folds_the_critique(tmp_path: Path) -> None:
    row = revision(0, "Use a small hook", "Use a good locksmith")
    tree = made(put(tmp_path / "revisions.jsonl", row))
    (article,) = tree.xpath("//*[@id='chains']//article")
    assert article.xpath(".//del/text()") == ["small hook"] and article.xpath(".//ins/text()") == [
        "good locksmith"
    ]
    assert "50% of the draft’s words kept" in words(article, ".")
    (critique,) = article.xpath(".//details[summary='critique']")
    assert "It helps a thief." in critique.text_content() and critique.get("open") is None


def test_replies_to_the_same_prompts_stand_side_by_side(tmp_path: Path) -> None:
    for model, started in (("before", "2026-11-27T00:00:00Z"), ("after", "2026-11-27T00:10:00Z")):
        model_item = {"option": "model", "path": f"models/{model}", "fingerprint": "f", "files": {"a": HASH}}
        rows = [sample(n, f"{model} says {n}", f"prompt {n}") for n in range(300 if model == "after" else 5)]
        put(tmp_path / f"eval/{model}.jsonl", *rows)
        put_manifest(tmp_path / f"eval/{model}.manifest.json", "sample", models=[model_item], started=started)
    put(tmp_path / "alone.jsonl", *(sample(n, "alone", f"other {n}") for n in range(9)))
    cards = made(tmp_path, examples=3).xpath("//*[@id='replies']//article")
    assert len(cards) == 3
    for card in cards:
        number = words(card, ".//*[@class='asked']").split()[-1]
        sides = [words(side, ".") for side in card.xpath(".//*[@class='side']")]
        assert sides == [f"before before says {number}", f"after after says {number}"]


def test_examples_are_drawn_by_seed_whatever_the_order(tmp_path: Path) -> None:
    rows = [revision(n, f"draft {n}") for n in range(50)]
    one, two = put(tmp_path / "one.jsonl", *rows), put(tmp_path / "two.jsonl", *reversed(rows))

    def drafts(file: Path, seed: int) -> list[str]:
        return made(file, examples=5, seed=seed).xpath("//*[@class='chain']/div[1]/div[2]/text()")

    assert len(drafts(one, 0)) == 5 and drafts(one, 0) == drafts(two, 0) != drafts(one, 1)


def test_warnings_that_differ_in_numbers_alone_stand_together(tmp_path: Path) -> None:
    for name, long in (("a", 4), ("b", 3)):
        rows = [sample(n, "x", f"q{n}", "length" if n < long else "stop") for n in range(4)]
        put(tmp_path / f"{name}.jsonl", *rows)
    tree = made(tmp_path)
    [line] = warned(tree)
    assert "2 warnings" in words(tree, "//*[@id='warnings']")
    assert line.startswith("a.jsonl 100% of the replies are cut off")
    assert "the same of 1 more b.jsonl 75% of the replies are cut off" in line


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path / f"revisions-{number}.jsonl", revision(1))
    for number in range(22):
        put(
            tmp_path / f"a-{number:02}.rejects.jsonl",
            {"reason": "empty", "detail": "", "row": {"prompt": PROMPT}},
        )
    reasons = [{"reason": f"reason_{n}", "detail": "", "row": {"prompt": PROMPT}} for n in range(14)]
    put(tmp_path / "a-00.rejects.jsonl", *reasons)
    text = page(find([tmp_path]), 2, 0)
    assert "1 more file is left out here" in text and "2 more files are left out here" in text
    assert "2 rarer reasons left out." in text


def test_public_rows_that_are_no_pair_are_left_out(tmp_path: Path) -> None:
    """As hh-rlhf has some: an empty reply."""
    text = "\n\nHuman: How do I pick a lock?\n\nAssistant:"
    good, empty = ({"chosen": f"{text} {chosen}", "rejected": f"{text} no"} for chosen in ("yes", ""))
    tree = made(put(tmp_path / "hh.jsonl", good, empty), examples=2)
    assert "pairs 1 longer" in words(tree, "//*[@id='labels']//dl")
    assert len(tree.xpath("//*[@id='labels']//article")) == 1 and not warned(tree)


def test_curves_of_a_run_under_way(tmp_path: Path) -> None:
    put_manifest(tmp_path / "rl/cai.partial.json", "ppo", options={"steps": 10, "max_kl": 50.0})
    steps = [{"step": n, "score": n / 10, "kl": n / 5, "score_length": 0.9} for n in range(1, 7)]
    put(tmp_path / "rl/metrics.jsonl", *steps)
    with (tmp_path / "rl/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 7, "score": NaN}\n{"st')
    tree = made(tmp_path / "rl")
    text = words(tree, "//*[@id='ppo']")
    assert "6 of 10" in text or "7 of 10" in text
    assert "0.10 → 0.60" in text and "0.20 → 1.20" in text
    assert [svg.get("aria-label") for svg in tree.xpath("//*[@id='ppo']//*[local-name()='svg']")] == [
        "Score",
        "KL to the reference",
        "Score and length",
    ]
    assert warned(tree) == [
        "rl not finished: `cai ppo` was cut off, or is still at work",
        "rl score and length go together (correlation 0.90 at the end): length pays",
    ]


def test_elo_and_responses(tmp_path: Path) -> None:
    def rated(elo: float) -> dict:
        return {"elo": elo, "low": elo - 20, "high": elo + 20, "games": 40}

    def model(name: str, run: str | None, step: int | None, helpful: float, harmless: dict | None) -> dict:
        item = {"name": name, "path": name, "run": run, "step": step}
        return {**item, "helpfulness": rated(helpful), "harmlessness": harmless}

    models = [
        model("a", None, None, 0, rated(0)),
        model("b", "rl", 10, 50, rated(90)),
        model("c", None, None, 5, None),
        model("best", None, None, 70, {"elo": 400, "low": 28, "high": None, "games": 8}),
        model("worst", None, None, -70, {"elo": -400, "low": None, "high": -28, "games": 8}),
    ]
    games = [
        {"a": "a", "b": "b", "win": 0.4, "low": 0.3, "high": 0.5, "length_controlled": None, "games": 40}
    ]
    elo = {"anchor": "a", "judge": {"told": "judged by a preference model pm"}, "models": models}
    (tmp_path / "elo.json").write_text(
        json.dumps({**elo, "win_rates": {"helpfulness": games, "harmlessness": []}})
    )
    share = {"share": 0.25, "low": 0.2, "high": 0.3}
    group = dict.fromkeys(("refusal", "bare", "preaching", "repetition"), share)
    group |= {
        "n": 8,
        "words": {"median": 12, "mean": 13.5},
        "harm": {"mean": 1.5, "low": 1.25, "high": 1.75, "mass": 0.9},
    }
    told = {"name": "a", "path": "a", "groups": {"all": group}, "over_refusal": share, "compliance": None}
    (tmp_path / "responses.json").write_text(
        json.dumps({"models": [told], "rubric": "r", "judge": "/x/judge"})
    )
    (tmp_path / "results.json").write_text(
        json.dumps({"models": {"a": 1, "b": 2}, "differences": 0, "asked": []})
    )
    (tmp_path / "broken.json").write_text(
        json.dumps({"models": [{"name": "a"}], "rubric": None, "judge": None})
    )
    tree = made(tmp_path)
    text = words(tree, "//*[@id='results']")
    assert "Elo frontier" in text and "50 (30 to 70), 40 games" in text and "40.0 % (30–50)" in text
    assert "400 (28 to …), 8 games" in text and "-400 (… to -28), 8 games" in text, "all games won, or lost"
    assert "25.0 % (20–30)" in text and "1.50 (1.25–1.75)" in text
    lines = warned(tree)
    assert {line.partition(" cannot be read: it has not the shape of its kind")[0] for line in lines} == {
        "broken.json",
        "results.json",
    }


# Nothing, and the command


def test_nothing_to_show_is_one_line(cai: Cai, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    empty = tmp_path / "empty"
    empty.mkdir()
    mistake(cai("report", empty, "--out", out), f"{empty}: nothing in it that a report shows")
    mistake(cai("report", tmp_path / "nix", "--out", out), f"{tmp_path / 'nix'}: no such file")
    mistake(cai("report", empty, "--out", tmp_path / "report.pdf"), "the page is written as .html")
    (tmp_path / "rows.jsonl").write_text('{"half')
    mistake(cai("report", tmp_path / "rows.jsonl", "--out", out), "rows.jsonl", "not a JSON object")
    assert not out.exists()


def test_the_command_writes_the_page(cai: Cai, tmp_path: Path) -> None:
    put(tmp_path / "run/revisions.jsonl", revision(0))
    out = tmp_path / "pages/report.html"
    done = cai("report", tmp_path / "run", "--out", out, "--examples", 0)
    assert done.returncode == 0 and done.stdout == "" and f"{out}: " in done.stderr, done.stderr
    tree = html.document_fromstring(out.read_text(encoding="utf-8"))
    assert "chains" in words(tree, "//*[@id='chains']") and not tree.xpath("//article")


@pytest.mark.parametrize("count", [3000])
def test_a_page_does_not_grow_with_the_rows(tmp_path: Path, count: int) -> None:
    rows = [sample(n, "word " * 20, f"prompt {n}") for n in range(count)]
    few, many = put(tmp_path / "few.jsonl", *rows[:10]), put(tmp_path / "many.jsonl", *rows)
    sizes = [len(page(find([file]), 4, 0)) for file in (few, many)]
    assert abs(sizes[1] - sizes[0]) < 500

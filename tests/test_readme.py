"""What the README tells people to type exists: every command parses, each configuration and file is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
README = PROJECT / "README.md"

pytestmark = pytest.mark.skipif(not README.is_file(), reason="needs the source tree")


def commands() -> list[list[str]]:
    """The words of each command in the code blocks, lines that go on joined."""
    text = README.read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def told_to_cai() -> list[list[str]]:
    """What comes after `cai`, or after a launcher's `-m cai_cli`."""
    names = [(words, "cai_cli" if "cai_cli" in words else "cai") for words in commands()]
    return [words[words.index(name) + 1 :] for words, name in names if name == "cai_cli" or words[0] == name]


def test_every_command_is_one_that_the_command_line_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that holds what `cai configs copy --all` copies, so that each `--config` is read too."""
    import typer

    from cai_cli.cli import app
    from cai_cli.stages import configs

    configs.copy(configs.Options(everything=True, out=tmp_path / "configs"))
    monkeypatch.chdir(tmp_path)
    asked = told_to_cai()
    assert len(asked) > 30
    for words in asked:
        command, name = typer.main.get_command(app), "cai"
        while words and words[0] in getattr(command, "commands", {}):
            command, name, words = command.commands[words[0]], words[0], words[1:]
        command.make_context(name, list(words))


def test_every_stage_stands_in_it() -> None:
    stages = {words[0] for words in told_to_cai()}
    assert stages >= {"revise", "sample", "sft", "label", "pmp", "train-pm", "ppo", "import", "configs"}


def test_a_sharded_run_is_merged_whole() -> None:
    """As many parts as the `--shard I/N` beside it says."""
    (shard,) = [words for words in told_to_cai() if "--shard" in words]
    (merge,) = [words for words in told_to_cai() if words[0] == "merge"]
    number, count = map(int, shard[shard.index("--shard") + 1].split("/"))
    part = shard[shard.index("--out") + 1]
    parts = [word for word in merge[1 : merge.index("--out")] if not word.startswith("-")]
    assert parts == [part.replace(f".{number}.", f".{n}.") for n in range(count)]


def test_make_targets_and_files_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for words in commands():
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"`(scripts/[\w./-]+)`", text):
        assert (PROJECT / path).exists(), path


def test_links_lead_somewhere_on_a_package_index_too() -> None:
    text = README.read_text(encoding="utf-8")
    assert [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")] == []
    assert "<img" not in text

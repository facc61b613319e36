"""The command line as such: help, flags, mistakes, config files, exit codes, what is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import mistake
from torch_free import PROGRAM

FLAGS = Path(__file__).parents[1] / "flags.txt"


def all_flags() -> list[str]:
    """`command --flag`, one for each spelling, in the order of --help; arguments without dashes."""
    import typer

    from cai_cli.cli import app

    lines = []

    def walk(command, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}".strip())
        for parameter in command.params:
            lines.extend(f"{path} {name}".strip() for name in [*parameter.opts, *parameter.secondary_opts])

    walk(typer.main.get_command(app), "")
    return lines


COMMANDS = (
    sorted({line.rsplit(" ", 1)[0] for line in FLAGS.read_text().splitlines() if " " in line})
    if FLAGS.exists()
    else []
)


# Help


def test_the_flags_are_the_ones_decided_on():
    """A new flag is a decision, which this records:

    PYTHONPATH=tests:tests/support python tests/console/test_cli.py > tests/flags.txt
    """
    assert all_flags() == FLAGS.read_text().splitlines()


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_heavy_imports(command):
    words = [sys.executable, "-c", PROGRAM, *command.split(), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: cai {command}".strip() in done.stdout
    if command and command != "constitution":
        assert "Example: cai " in done.stdout


def test_a_mistake_is_told_without_heavy_imports(tmp_path):
    for words in (
        ["sample", "--nix"],
        ["sample", "--model", tmp_path, "--prompts", "nix", "--out", tmp_path / "x.jsonl"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stderr.startswith("error: "), done.stderr


def test_no_arguments_show_the_help_and_version_the_version(cai):
    from cai_cli import __version__

    shown = cai()
    assert "Usage: cai" in shown.stdout + shown.stderr and "Traceback" not in shown.stderr
    assert cai("--version").stdout.strip() == f"cai {__version__}"


def test_console_scripts_are_the_same_command():
    for name in ("cai", "cai_cli"):
        script = Path(sys.executable).with_name(name)
        if not script.exists():
            pytest.skip("the package is not installed here")
        assert (
            "Usage: cai"
            in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
        )


# Mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["revize"], ["No such command 'revize'", "revise", "see `cai --help`"]),
        (["sample", "--modell", "x"], ["No such option: --modell", "--model", "see `cai sample --help`"]),
        (["sample", "--model", "x"], ["Missing option '--out'"]),
        (["sample", "--model"], ["--model", "requires an argument"]),
        (["sample", "--temperature", "hot"], ["--temperature", "valid"]),
        (["sample", "--temperature", "-1"], ["--temperature"]),
        (["sample", "--on-truncated", "cut"], ["--on-truncated", "'cut' is not one of 'reject', 'keep'"]),
        (["lineage", "x", "more"], ["unexpected extra argument", "more"]),
        (["constitution", "shwo"], ["No such command 'shwo'", "see `cai constitution --help`"]),
        (["import", "hh", "x", "--out", "x.jsonl"], ["'hh' is not one of 'hh-rlhf'"]),
        (
            ["import", "red-team", "x", "--to", "revisions", "--out", "x.jsonl"],
            ["--to revisions: red-team makes prompts"],
        ),
        (
            ["label", "--feedback-model", "x", "--out", "x.jsonl"],
            ["give either --prompts (with --model) or --pairs"],
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(cai, words, parts):
    line = mistake(cai(*words, cwd=Path(__file__).parents[1]), *parts)
    assert "Usage:" not in line


def test_debug_shows_the_traceback(cai, tmp_path):
    done = cai("lineage", tmp_path / "nix", "--debug")
    assert done.returncode != 0 and "Traceback" in done.stderr


# Config files


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"prompt {n}\n" for n in range(40)))
    return path


def options_of(folder: Path) -> dict:
    return json.loads((folder / "split.manifest.json").read_text())["options"]


def test_a_config_gives_flags_and_the_command_line_wins(cai, tmp_path, prompts):
    config = tmp_path / "split.yaml"
    config.write_text("parts: a=1,b=1\nseed: 3\nif-changed: restart\n")
    done = cai("split", prompts, "--config", config, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    assert {name: options_of(tmp_path / "one")[name] for name in ("parts", "seed", "if_changed")} == {
        "parts": "a=1,b=1",
        "seed": 3,
        "if_changed": "restart",
    }
    assert cai("split", prompts, "--config", config, "--seed", "4", "--out", tmp_path / "two").returncode == 0
    assert options_of(tmp_path / "two")["seed"] == 4 and options_of(tmp_path / "two")["parts"] == "a=1,b=1"


def test_a_single_value_serves_a_repeatable_flag(cai, tmp_path, prompts):
    config = tmp_path / "sample.yaml"
    config.write_text(
        f"model: {tmp_path / 'nix'}\nprompts: {prompts}\nout: {tmp_path / 'out.jsonl'}\nnum_samples: 1\n"
    )
    mistake(cai("sample", "--config", config), f"{config}: --model {tmp_path / 'nix'}: no such directory")
    line = mistake(cai("sample", "--config", config, "--model", "nix/"), "--model nix/: no such directory")
    assert "sample.yaml" not in line


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sede: 3", ["unknown key `sede`", "did you mean `seed`?"]),
        ("if_chnaged: restart", ["unknown key `if_chnaged`", "did you mean `if-changed`?"]),
        ("zzz: 3", ["unknown key `zzz`", "see `cai split --help`"]),
        ("config: x", ["unknown key `config`"]),
        ("seed: many", ["split.yaml: ", "--seed", "valid integer"]),
        ("if-changed: maybe", ["split.yaml: ", "--if-changed", "'maybe' is not one of"]),
        ("- a\n- b", ["expected a mapping of flags to values"]),
        ("seed: [1\nparts: x", ["split.yaml:2: not valid YAML"]),
        ("seed: \xff".encode("latin-1"), ["split.yaml: not valid YAML"]),
    ],
)
def test_a_bad_config_is_one_line(cai, tmp_path, prompts, text, parts):
    config = tmp_path / "split.yaml"
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = cai("split", prompts, "--config", config, "--parts", "a=1", "--out", tmp_path / "out")
    mistake(done, *parts)
    assert not (tmp_path / "out").exists()


def test_a_config_takes_flags_by_their_names_and_one_value_for_several(cai, tmp_path, prompts):
    config = tmp_path / "one.yaml"
    config.write_text("from: 2\nlimit: 1")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"q{n}"}]}) + "\n" for n in range(3))
    )
    shown = cai("inspect", rows, "--config", config)
    assert shown.returncode == 0 and shown.stdout.startswith("row 2"), shown.stderr
    config.write_text(f"prompts: {prompts}\nparts: a=1")
    assert cai("split", "--config", config, "--out", tmp_path / "out").returncode == 0


def test_a_missing_config_is_named(cai, tmp_path, prompts):
    mistake(cai("split", prompts, "--config", tmp_path / "nix.yaml"), "nix.yaml: no such file")


# Output


def test_data_goes_to_stdout_and_talk_to_stderr(cai):
    shown = cai("constitution", "show", "article")
    assert shown.returncode == 0 and shown.stderr == "" and shown.stdout.startswith("name: article")
    checked = cai("constitution", "check", "article")
    assert checked.stdout == "" and "article: 9 principles" in checked.stderr


def test_a_full_disk_is_one_line(cai, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "cai_cli", "constitution", "show", "article"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left on device — make room" in done.stderr
    (tmp_path / "file").write_text("")
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\ntwo\n")
    done = cai("split", prompts, "--parts", "a=1", "--out", tmp_path / "file/deeper")
    assert done.returncode == 1 and "Not a directory" in done.stderr and len(done.stderr.splitlines()) == 1, (
        done.stderr
    )


def test_paths_are_told_as_they_are(cai, tmp_path):
    """Neither rich's markup nor its emoji codes nor its width change what a message says."""
    name = "a:smile:[bold]" + "long" * 40 + ".jsonl"
    mistake(
        cai("split", tmp_path / name, "--parts", "a=1", "--out", tmp_path / "out"),
        f"{tmp_path / name}: no such file",
    )


if __name__ == "__main__":
    sys.stdout.write("\n".join(all_flags()) + "\n")


@pytest.mark.parametrize("flag", ["--learning-rate", "--max-grad-norm", "--lora-dropout"])
@pytest.mark.parametrize("number", ["inf", "1e39", "nan"])
def test_numbers_that_no_model_computes_with_are_refused(cai, tmp_path, flag, number):
    result = cai("sft", "--model", "lm", "--data", "x.jsonl", "--out", tmp_path / "out", flag, number)
    mistake(result, flag)
    assert not (tmp_path / "out").exists()

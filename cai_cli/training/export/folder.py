"""The directory that `cai export` writes: prompts in the engine's format, its settings, a script to start it, and
what became of each of our settings.

    openrlhf   prompts.jsonl, eval.jsonl; launch.sh with all flags
    verl       prompts.parquet, eval.parquet; ppo.yaml on top of its own; reward.py; launch.sh
    both       export.json (settings, what was carried over, the reward, the model), README.md, rejects.jsonl
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.fingerprints import EXPORT_SETTINGS
from cai_cli.artifacts.manifest import plain
from cai_cli.console.groups import values_of
from cai_cli.console.messages import visible
from cai_cli.console.options import flag_name
from cai_cli.rows.jsonl import dump_row, strict_json, write_atomically
from cai_cli.rows.records import Prompt
from cai_cli.training.export import openrlhf, verl
from cai_cli.training.export.carried import Carried
from cai_cli.training.export.models import engine_prompt, place_of

if TYPE_CHECKING:
    from cai_cli.models.chat import Renderer
    from cai_cli.training.export.settings import Options

VERSIONS = {"openrlhf": openrlhf.VERSION, "verl": verl.VERSION}
START = """\
#!/usr/bin/env bash
# {engine} {version}: PPO of the settings beside this file. `cai serve` has to answer at REWARD_URL, and Ray to
# run on all machines. More settings of {engine} can follow on the command line.
set -euo pipefail
HERE="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
MODEL="${{MODEL:-{model}}}"
PM="${{PM:-{pm}}}"
OUT="${{OUT:-$HERE/run}}"
REWARD_URL="${{REWARD_URL:-{url}}}"
case "$HERE$MODEL$PM$OUT" in
*[\\'\\",@]*) echo "launch.sh: {engine} cannot read a path with a quote, a comma or @ in it" >&2; exit 2 ;;
esac
python3 -c 'import sys, urllib.request as u; [u.urlopen(url, timeout=60) for url in sys.argv[1].split(",")]' "$REWARD_URL"
exec python3 -m {module} {words} "$@"
"""
README = """\
# PPO by {engine} {version}

Written by `cai export {engine}`; the settings were checked against {engine} {version}. Another version may have others.

    pip install {engine}=={version}        # in an environment of its own, on every machine
    ray start --head        # and `ray start --address HEAD:6379` on the others
    cai serve {here} --host 0.0.0.0 --port 5000     # on a GPU that Ray does not have; several: commas in REWARD_URL
    REWARD_URL=http://HOST:5000 OUT=/shared/run ./launch.sh
{merge}    cai import policy {trained} --from-export {here} --out rl-cai

Model, preference model and this directory have to lie at the same place on every machine; MODEL and PM in the
environment name other places.

The reward is `cai serve`'s: the preference model reads prompt and reply in its template, closed by EOS, as `cai score`
does. {why}

| `cai ppo` | value | in {engine} | |
|---|---|---|---|
{rows}
"""
WHY = {
    "openrlhf": "OpenRLHF's own reward model reads its score at a reply's last token, which of one cut off is no EOS.",
    "verl": "verl's own sends the text through the template anew, without the EOS.",
}
TRAINED = "/shared/run/policy"
# What an engine saves is not yet a model of whole weights: verl's shards always, OpenRLHF's adapters.
VERL_MERGE = (
    "python3 -m verl.model_merger merge --backend fsdp "
    "--local_dir /shared/run/checkpoints/global_step_{steps}/actor --target_dir /shared/run/policy"
)
OPENRLHF_MERGE = (
    "python3 -m openrlhf.cli.lora_combiner --model_path MODEL --lora_path /shared/run/policy "
    "--output_path /shared/run/merged"
)


@dataclass(frozen=True, slots=True)
class Export:
    """All that is written. `settings`: the engine's; `reward` and `model`: for `cai serve` and `cai import`."""

    engine: str
    options: Options
    settings: dict[str, Any]
    carried: dict[str, Carried]
    reward: dict[str, Any]
    model: dict[str, Any]

    def save(self, renderer: Renderer, parts: dict[str, list[Prompt]], folder: Path) -> None:
        """`parts`: name -> prompts of that file."""
        for name, prompts in parts.items():
            rows = [(prompt, engine_prompt(renderer, prompt.prompt)) for prompt in prompts]
            WRITERS[self.engine](folder / name, rows)
        if self.engine == "verl":
            write_yaml(folder / "ppo.yaml", verl.nested(self.settings))
            write_atomically(folder / "reward.py", verl.REWARD_MANAGER)
        text = strict_json(self.as_json(), EXPORT_SETTINGS, indent=2, ensure_ascii=False)
        write_atomically(folder / EXPORT_SETTINGS, text + "\n")
        write_atomically(folder / "launch.sh", self.script())
        (folder / "launch.sh").chmod(0o755)
        write_atomically(folder / "README.md", self.readme(folder))

    def as_json(self) -> dict[str, Any]:
        values = values_of(self.options)
        return {
            "engine": self.engine,
            "version": VERSIONS[self.engine],
            "settings": self.settings,
            "carried": [
                {"flag": flag_name(name), "value": plain(values[name]), **asdict(each)}
                for name, each in self.carried.items()
            ],
            "reward": self.reward,
            "model": self.model,
        }

    def script(self) -> str:
        options = self.options
        if self.engine == "openrlhf":
            words = openrlhf.flags(self.settings)
        else:
            words = ['--config-path "$HERE" --config-name ppo', *verl.overrides(self.settings)]
        return START.format(
            engine=self.engine,
            version=VERSIONS[self.engine],
            module=openrlhf.MODULE if self.engine == "openrlhf" else verl.MODULE,
            model=in_quotes(place_of(options.model)),
            pm=in_quotes(place_of(options.pm)),
            url=in_quotes(options.cluster.reward_url),
            words=" \\\n  ".join(["", *words]).lstrip(" "),
        )

    def readme(self, folder: Path) -> str:
        merge, trained = "", TRAINED
        if self.engine == "verl":
            merge = VERL_MERGE.format(steps=self.options.ppo.steps)
        elif self.options.models.adapters.lora:
            merge, trained = OPENRLHF_MERGE, "/shared/run/merged"
        return README.format(
            engine=self.engine,
            version=VERSIONS[self.engine],
            here=shlex.quote(folder.name),
            merge=f"    {merge}\n" if merge else "",
            trained=trained,
            why=WHY[self.engine],
            rows="\n".join(self.rows()),
        )

    def rows(self) -> list[str]:
        values = values_of(self.options)
        found = []
        for name, each in sorted(self.carried.items(), key=lambda pair: pair[1].lost):
            equal = ", ".join(f"`{one}` {cell(value)}" for one, value in each.theirs.items())
            equal = equal or ("**no equal**" if each.lost else "")
            found.append(f"| `{flag_name(name)}` | {cell(values[name])} | {equal} | {each.remark} |")
        return found


def cell(value: Any) -> str:
    """A value in a table of Markdown."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return visible(text).replace("|", "\\|")


def in_quotes(text: str) -> str:
    """What stands in for a variable that is not set, within the shell's double quotes."""
    return "".join(f"\\{sign}" if sign in '\\"$`}' else sign for sign in text)


Rows = list[tuple[Prompt, list[dict[str, str]]]]


def label_of(prompt: Prompt) -> str:
    """The conversation as the reward gets it back."""
    return strict_json(prompt.prompt, prompt.id, ensure_ascii=False)


def write_lines_of(file: Path, rows: Rows) -> None:
    """OpenRLHF: --data.input_key prompt, --data.label_key label, which the reward gets back."""
    lines = [
        {
            "id": prompt.id,
            "prompt": turns,
            "label": label_of(prompt),
            "datasource": prompt.kind or "default",
        }
        for prompt, turns in rows
    ]
    write_atomically(file.with_suffix(".jsonl"), "".join(f"{dump_row(line)}\n" for line in lines))


def write_parquet(file: Path, rows: Rows) -> None:
    """verl: the label is the ground truth, which the reward manager gets back."""
    import pyarrow
    from pyarrow import parquet

    turn = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    schema = pyarrow.schema(
        [
            ("data_source", pyarrow.string()),
            ("prompt", pyarrow.list_(turn)),
            ("ability", pyarrow.string()),
            (
                "reward_model",
                pyarrow.struct([("style", pyarrow.string()), ("ground_truth", pyarrow.string())]),
            ),
            ("extra_info", pyarrow.struct([("index", pyarrow.int64()), ("id", pyarrow.string())])),
        ]
    )
    lines = [
        {
            "data_source": prompt.kind or "default",
            "prompt": turns,
            "ability": "chat",
            "reward_model": {"style": "model", "ground_truth": label_of(prompt)},
            "extra_info": {"index": number, "id": prompt.id},
        }
        for number, (prompt, turns) in enumerate(rows)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(lines, schema), file.with_suffix(".parquet"))


WRITERS: dict[str, Callable[[Path, Rows], None]] = {"openrlhf": write_lines_of, "verl": write_parquet}


def write_yaml(file: Path, settings: dict[str, Any]) -> None:
    """On top of verl's own defaults, which are found in the installed package."""
    import yaml

    head = {"hydra": {"searchpath": ["pkg://verl.trainer.config"]}, "defaults": ["ppo_trainer", "_self_"]}
    text = yaml.safe_dump(head, sort_keys=False) + yaml.safe_dump(settings, sort_keys=False)
    write_atomically(file, text)

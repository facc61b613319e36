"""Who plays: `NAME=PATH`, a model directory or a file of samples -> names, and the run and step that a checkpoint
is of. No torch.

Checkpoints are known by the names that trainers give them: `checkpoint-500` (Hugging Face, our `sft`), `step-500`,
`global_step_500` (verl), `iter_500`. Their run is the directory around them, without a `checkpoints` in between. The
directory of the run itself is the run's end. A file of samples is of the model that its manifest names.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai_cli.artifacts.ancestry import source_path
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import manifest_path
from cai_cli.errors import UserError
from cai_cli.rows.sources import parse_name

CHECKPOINT = re.compile(r"(checkpoint|global_step|step|iter|epoch)[-_]?(?P<step>\d+)")
WRITTEN = re.compile(r"(\.samples)?(\.jsonl?(\.gz)?|\.gz)$")
NOT_IN_A_FILE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True)
class Player:
    """`run`: the directory of the training run that the model is of, where it is a checkpoint or the end of one
    whose checkpoints play; `step`: None for the end.
    """

    name: str
    path: str
    is_model: bool
    run: str | None = None
    step: int | None = None

    @property
    def file_name(self) -> str:
        """The name as part of a file's."""
        return NOT_IN_A_FILE.sub("-", self.name)


def players_of(given: list[str], served: bool = False) -> list[Player]:
    """`served`: names of models are a server's. Raises UserError for what is no player, and names that repeat."""
    players = [player_of(text, served) for text in given]
    runs = {player.run for player in players if player.run}
    ends = [
        replace(player, run=home)
        if player.run is None and (home := os.path.relpath(origin(player))) in runs
        else player
        for player in players
    ]
    for field in ("name", "file_name"):
        counts = Counter(getattr(player, field) for player in ends)
        name, count = counts.most_common(1)[0] if counts else ("", 0)
        if count > 1:
            which = ", ".join(player.path for player in ends if getattr(player, field) == name)
            raise UserError(f"{which}: {count} models are called {name}", f"name them: NAME={ends[0].path}")
    return ends


def player_of(text: str, served: bool) -> Player:
    name, path = parse_name(text)
    place = Path(path)
    elsewhere = not place.is_file() and not WRITTEN.search(place.name)  # a server's model, or one of the Hub
    is_model = place.is_dir() or (elsewhere and (served or path.count("/") == 1))
    if not is_model and not place.is_file():
        raise UserError(
            f"{path}: no such file or directory", "give model directories, files of samples, or NAME=PATH"
        )
    player = Player(name or default_name(place), path, is_model)
    home = Path(origin(player))
    match = CHECKPOINT.fullmatch(home.name)
    if not match:
        return player
    run, step = run_of(home), int(match["step"])
    named = f"{readable(run.name)}@{step}" if not name and is_model else player.name
    return replace(player, name=named, run=os.path.relpath(run), step=step)


def default_name(path: Path) -> str:
    """A directory's name, a file's without its ending."""
    return readable(path.resolve().name if path.is_dir() else WRITTEN.sub("", path.name))


def readable(name: str) -> str:
    """A name that can be read back from `NAME=PATH`, as a run called lr=1e-4 could not: stages hand on what plays so."""
    return name.replace("=", "-")


def run_of(checkpoint: Path) -> Path:
    above = checkpoint.parent
    return above.parent if above.name == "checkpoints" else above


def origin(player: Player) -> str:
    """The directory of the model that speaks: of a file of samples the one that its manifest names, "/" where it
    names none.
    """
    if player.is_model:
        return str(Path(player.path).resolve())
    path = Path(player.path)
    models = models_of(read_manifest(manifest_path(path)), "model")
    return str(source_path(path, models[0]).resolve()) if models and models[0]["files"] else "/"


def judge_cautions(manifest: Manifest, players: list[Player]) -> list[str]:
    """What is to be said of a judge that plays itself, or that a player was trained to please. `manifest`: of the
    results, with the fingerprints of the judge and of the players.
    """
    judges = {item["fingerprint"] for item in models_of(manifest, "judge")}
    found = []
    for number, player in enumerate(players):
        home = Path(origin(player))
        made = read_manifest(manifest_path(home)) if home.is_dir() else None
        if not player.is_model:
            writers = models_of(read_manifest(manifest_path(Path(player.path))), "model")
        else:
            mine = models_of(manifest, "players")
            writers = [item for item in mine if item["named"].startswith(f"{number}: ")]
        if judges & {item["fingerprint"] for item in writers}:
            found.append(f"the judge is {player.name} itself: it may prefer its own replies")
        if judges & {item["fingerprint"] for item in models_of(made, "pm")}:
            told = "was trained to please this judge: its Elo says how far that went"
            found.append(f"{player.name} {told}; a judge that it has not met is a fairer one")
    return found


def models_of(manifest: Manifest | None, option: str) -> list[dict[str, Any]]:
    return [item for item in (manifest or {}).get("models", []) if item["option"] == option]

"""A directory that `cai export` wrote, read back: for `cai serve`, which scores with its preference model, and for
`cai import policy`, which takes back what was trained from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai_cli.artifacts.ancestry import is_on_hub, source_path
from cai_cli.artifacts.fingerprints import EXPORT_SETTINGS, fingerprint_model
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import MODEL_MANIFEST
from cai_cli.errors import UserError
from cai_cli.models.weight_files import read_json


@dataclass(frozen=True, slots=True)
class Exported:
    folder: Path
    manifest: Manifest
    settings: dict[str, Any]

    def preference_model(self, here: str | None) -> str:
        """Where it lies: as the export says, or `here`. Raises UserError where it is another one now."""
        item = next(item for item in self.manifest["models"] if item["option"] == "pm")
        path = here or (item["path"] if is_on_hub(item) else str(source_path(self.folder, item)))
        if not is_on_hub(item) and not Path(path).is_dir():
            raise UserError(
                f"{self.folder}: its preference model is not at {path}", "say where it is: --pm DIR"
            )
        if fingerprint_model(path) != item["fingerprint"]:
            told = f"{self.folder}: {path} is not the preference model that was exported"
            raise UserError(told, "export again, or name the exported one: --pm DIR")
        return path


def read_export(folder: Path, flag: str = "") -> Exported:
    """Raises UserError for anything else."""
    name = f"{flag} {folder}".lstrip()
    manifest = read_manifest(folder / MODEL_MANIFEST) if folder.is_dir() else None
    if manifest is None or not manifest["stage"].startswith("export "):
        hint = "name the directory that `cai export openrlhf` or `cai export verl` wrote"
        raise UserError(f"{name}: is not an export, or not a finished one", hint)
    settings = read_json(folder / EXPORT_SETTINGS)
    for part in ("reward", "model"):
        if not isinstance(settings.get(part), dict):
            raise UserError(f"{folder / EXPORT_SETTINGS}: no `{part}` in it", "export again")
    return Exported(folder, manifest, settings)

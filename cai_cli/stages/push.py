"""`cai push PATH REPO`: a finished model directory or rows artifact -> a repository on the Hugging Face Hub,
private by default.

    cai push rl-cai/ org/rl-cai                       a model, with its card and its cai.json
    cai push comparisons.jsonl org/comparisons        a data set: the rows and their manifest
    cai push sl-cai/ org/sl-cai --public

Nothing is trained or changed here: where it fails, the same command tries again. Checkpoints, rejects, locks
and trackers' files stay. In what is uploaded of cai.json, of a manifest and of an adapter's configuration,
local paths are names without their folders. The token is that of `hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePath
from typing import Annotated, Any

import typer

from cai_cli.artifacts.ancestry import is_on_hub
from cai_cli.artifacts.fingerprints import ADAPTER_CONFIG
from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.artifacts.places import MODEL_MANIFEST, manifest_path
from cai_cli.console.messages import say
from cai_cli.console.options import flag
from cai_cli.errors import RunError, UserError, first_line
from cai_cli.models.paths import check_place
from cai_cli.models.weight_files import read_json
from cai_cli.processes.ranks import check_one_process
from cai_cli.rows.storage import check_input

# What only this machine has a use for.
STAYS = (
    ".*",
    "checkpoints/*",
    "*rejects.jsonl",
    "*.partial*",
    "*.bak*",
    "tensorboard/*",
    "wandb*",
    "adapter/README.md",
    "*/.*",
)
# The parts of a manifest that hold paths
PLACES = ("options", "inputs", "models", "constitution", "identity", "merged")
NO_PATH = re.compile(r"hf:|\{|\d+/\d+$")  # a data set on the Hub, JSON, a shard


@dataclass(frozen=True, kw_only=True)
class Options:
    path: Annotated[
        Path, typer.Argument(help="A finished model directory, or rows that a stage wrote (.jsonl).")
    ]
    repo: Annotated[
        str, typer.Argument(help="The repository, as org/name or name; it is made where there is none.")
    ]
    private: Annotated[
        bool,
        flag(
            "Output",
            "Who may see a repository that is made now: you alone, or everybody.",
            "--private/--public",
        ),
    ] = True
    commit_message: Annotated[
        str | None, flag("Output", "What the commit says; what was made, by default.")
    ] = None
    dry_run: Annotated[
        bool, flag("Output", "Show what would be uploaded, without a connection.", "--dry-run")
    ] = False


def run(options: Options) -> None:
    """Upload a finished model or rows to the Hugging Face Hub, private by default.

    Example: cai push rl-cai/ org/rl-cai
    """
    check_one_process("files are uploaded")
    kind, manifest, files = what_is_there(options.path)
    check_name(options.repo)
    if options.dry_run:
        for name, file in files.items():
            say(f"{name}: {file.stat().st_size:,} bytes")
        say(f"{options.path}: {len(files)} files would go to the {kind} {options.repo}")
        return
    done = f"cai {manifest['stage']}" if manifest else f"cai push of {options.path.name}"
    with tempfile.TemporaryDirectory(prefix="cai-push-") as scratch:
        folder = Path(scratch)
        for name, file in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            published = without_places(name, file, options.repo)
            if published is None:
                target.symlink_to(file.resolve())
            else:
                target.write_text(published, encoding="utf-8")
        upload(options, kind, folder, options.commit_message or done)


def what_is_there(path: Path) -> tuple[str, Manifest | None, dict[str, Path]]:
    """Model or dataset, its manifest, and the files to upload by their names there. Raises UserError for what
    is neither.
    """
    if path.is_dir():
        check_place(str(path), "PATH")
        files = {
            name: file for name, file in all_files(path) if not any(fnmatch(name, stays) for stays in STAYS)
        }
        return "model", read_manifest(path / MODEL_MANIFEST), files
    check_input(path)
    beside = manifest_path(path)
    manifest = read_manifest(beside)
    if manifest is None:
        raise UserError(
            f"{path}: has no manifest",
            "what a stage wrote has one beside it; name that, or a model directory",
        )
    return "dataset", manifest, {path.name: path, beside.name: beside}


def all_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of all files below a folder, in the order of their names."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            yield file.relative_to(folder).as_posix(), file


def check_name(repo: str) -> None:
    """Raises UserError for what can be no repository, before anything is uploaded."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"REPO {repo}: {first_line(error)}", "give org/name, or name for one of your own"
        ) from None


def upload(options: Options, kind: str, folder: Path, message: str) -> None:
    """Make the repository, if need be, and commit the folder to it. Raises RunError; the artifact stays what
    it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(options.repo, repo_type=kind, private=options.private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, repo_type=kind, folder_path=folder, commit_message=message)
    except Exception as error:  # errors of many kinds: no token, no right to, no network, a server's
        told = f"{options.path}: could not be pushed to {options.repo}: {first_line(error)}"
        raise RunError(
            told,
            "it is whole as it is; `hf auth login` or HF_TOKEN lets you in, and the same command tries again",
        ) from None
    say(f"{options.path}: pushed to {made}")


# What is said of this machine


def without_places(name: str, file: Path, repo: str) -> str | None:
    """The text of a file that names places on this machine, without them; None for a file that is uploaded as
    it is.
    """
    if name == MODEL_MANIFEST or name.endswith(".manifest.json"):
        return as_text(without_folders(read_json(file)))
    if Path(name).name == ADAPTER_CONFIG:
        config = read_json(file)
        base = str(config.get("base_model_name_or_path") or "")
        return as_text(
            {**config, "base_model_name_or_path": PurePath(base).name if Path(base).is_absolute() else base}
        )
    if name != "README.md":
        return None
    text = file.read_text(encoding="utf-8").replace('path = "."  # this folder', f'path = "{repo}"')
    return text.replace("--model . ", f"--model {repo} ").replace("--pm . ", f"--pm {repo} ")


def as_text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def without_folders(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with every local path in it cut to its name; what is on the Hub keeps its own."""
    named = [*(manifest.get("models") or []), *(manifest.get("inputs") or [])]
    on_hub = {item["path"] for item in named if is_on_hub(item)}

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cut(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        is_path = isinstance(value, str) and "/" in value and not NO_PATH.match(value) and value not in on_hub
        return PurePath(value).name if is_path else value

    return {name: cut(value) if name in PLACES else value for name, value in manifest.items()}

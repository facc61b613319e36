"""What makes an artifact the one that a command would make: the stage, its content options, and the content
of its inputs.
"""

from __future__ import annotations

from typing import Any

from cai_cli.artifacts.fingerprints import file_changes
from cai_cli.artifacts.manifest_shape import Manifest
from cai_cli.console.groups import flags_of
from cai_cli.console.options import DEMONSTRATIONS, NOTED, Part, flag_name


def identity(manifest: Manifest, options_type: type) -> dict[str, Any]:
    """What must be equal for two manifests to be of the same artifact: flag -> comparable value."""
    same: dict[str, Any] = {"stage": manifest["stage"]}
    described = {item["option"] for item in manifest["inputs"]}
    for name, flag in flags_of(options_type).items():
        named = flag.part is DEMONSTRATIONS and name not in described
        if named or flag.part is Part.CONTENT:
            same[flag_name(name)] = manifest["options"].get(name)
    contents: dict[str, list[Any]] = {}
    for item in manifest["inputs"]:
        content = [item["sha256"] or item["path"], item["weight"]]
        contents.setdefault(flag_name(item["option"]), []).append(with_name(item, content))
    for item in manifest["models"]:
        contents.setdefault(flag_name(item["option"]), []).append(with_name(item, item.get("fingerprint")))
    return {**same, **contents, "--constitution": (manifest["constitution"] or {}).get("sha256")}


def with_name(item: dict[str, Any], content: Any) -> Any:
    """What is in an input or a model, and its name where that is content too."""
    return {"named": item["named"], "content": content} if "named" in item else content


def differences(old: Manifest, new: Manifest, options_type: type) -> list[str]:
    """What differs in identity, worded for the user: `--seed was 0, now 1`, `--prompts has other content`."""
    if old.get("stage") != new["stage"]:
        return [f"it was made by `cai {old.get('stage')}`"]
    before, now = identity(old, options_type), identity(new, options_type)
    return identity_differences(before, now, old, new)


def model_changes(name: str, old: Manifest, new: Manifest) -> list[str]:
    """Which files of the models given to a flag are not those of before; nothing where there are no files to
    tell by.
    """
    before, now = (
        [item["files"] for item in m["models"] if flag_name(item["option"]) == name] for m in (old, new)
    )
    if len(before) != len(now) or not all([*before, *now]):
        return []
    return [
        f"{name}: {change}"
        for was, is_now in zip(before, now, strict=True)
        for change in file_changes(was, is_now)
    ]


def identity_differences(
    before: dict[str, Any], now: dict[str, Any], old: Manifest, new: Manifest
) -> list[str]:
    """What differs between two identities, worded for the user."""
    hashed = {
        flag_name(item["option"]) for source in (old, new) for item in source["inputs"] + source["models"]
    }
    hashed.add("--constitution")
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_now = before.get(name), now.get(name)
        if was != is_now:
            changed = "has other content" if name in hashed else f"was {was}, now {is_now}"
            if name in hashed and not (was and is_now):
                changed = "is new" if is_now else "is gone"
            found += model_changes(name, old, new) or [f"{name} {changed}"]
    return found


def noted_changes(old: Manifest, new: Manifest, options_type: type) -> list[str]:
    """Changes that are allowed but worth a warning: dtype, engine."""
    names = [name for name, flag in flags_of(options_type).items() if flag.part is NOTED]
    before, now = old["options"], new["options"]
    return [f"{flag_name(n)} was {before.get(n)}, now {now[n]}" for n in names if before.get(n) != now[n]]

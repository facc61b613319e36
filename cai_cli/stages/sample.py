"""prompts + a language model -> samples.jsonl: n sampled replies to each prompt.

    cai sample --model helpful-only/ --prompts helpful.jsonl -n 2 --out samples.jsonl

Paper section 3.2: helpful prompts are answered by the helpful model directly, two replies each.
"""

from __future__ import annotations

from pathlib import Path

from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.places import MODEL_MANIFEST
from cai_cli.artifacts.rows import RowArtifact
from cai_cli.console.messages import say, show_text
from cai_cli.console.options import check_draws
from cai_cli.engines.open import check_engine
from cai_cli.engines.replies import Options as Options
from cai_cli.engines.replies import Slot, segment_of, settings_of, slots_of, write_samples
from cai_cli.models.devices import check_device
from cai_cli.rows.prompt_files import read_prompts


def run(options: Options) -> None:
    """Sample replies from a language model.

    Example: cai sample --model helpful-only/ --prompts helpful.jsonl -n 2 --out samples.jsonl
    """
    check_draws(options.num_samples, "--num-samples", options.generation.temperature)
    check_engine(options.model, settings_of(options))
    artifact = RowArtifact("sample", options, options.generation.shard)
    if artifact.done:
        return
    check_device(options.hardware.device, options.output.dry_run)
    slots = slots_of(read_prompts(options.prompts, options.rows.limit), options.num_samples)
    todo = artifact.remaining(slots)
    if options.output.dry_run:
        dry_run(options, slots[0], len(todo))
    elif write_samples(artifact, options, todo):
        tell_next(artifact, options.model, options.output.out)


def tell_next(artifact: RowArtifact, model: str, out: Path) -> None:
    """What a helpful-only model says is learned from; what a trained one says is looked at."""
    made = read_manifest(Path(model) / MODEL_MANIFEST)
    if made and made["stage"] in ("sft", "ppo"):
        artifact.tell_next("cai evaluate responses", out, "--out", out.with_name(f"{out.stem}-rates.json"))
    else:
        artifact.tell_next("cai sft --model BASE --data", out, "--out", out.parent / "sl-cai")


def dry_run(options: Options, slot: Slot, remaining: int) -> None:
    """Show the first prompt exactly as the model would get it."""
    from cai_cli.engines.open import open_reader

    renderer = open_reader(options.model, settings_of(options))
    show_text(renderer.show(segment_of(options, renderer).prompt(slot)))
    say(f"{remaining} replies of at most {options.generation.max_new_tokens} tokens")

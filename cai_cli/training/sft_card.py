"""The README.md of a trained model: what it is, what it was made from, how it was trained. Facts of the manifest only."""

from __future__ import annotations

import json
from pathlib import PurePath
from typing import Any

import yaml

OPTIMISATION = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "max_length",
    "packing",
    "bf16",
)
ADAPTERS = ("lora_r", "lora_alpha", "lora_dropout", "quantize")


def sft_card(manifest: dict[str, Any]) -> str:
    """The card of an SL-CAI model. Names of local files and models are given without their folders."""
    options, base = manifest["options"], manifest["models"][0]["path"]
    head = {
        "base_model": base if is_hub_name(base) else None,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["constitutional-ai", "sft", "trl", *(["lora"] if options["lora"] else [])],
    }
    front = yaml.safe_dump({key: value for key, value in head.items() if value}, sort_keys=False)
    data = [f"| `{shown(item['path'])}` | {item['weight']:g} | `{str(item['sha256'])[:16]}` |" for item in manifest["inputs"]]
    names = OPTIMISATION + (ADAPTERS if options["lora"] else ())
    settings = [f"| {name} | {json.dumps(options[name])} |" for name in names]
    targets = "every revision" if options["targets"] == "all" else "the final revision"
    held_out = manifest["held_out"]
    measured = [f"| held-out loss, {kind} | {loss:.4f} |" for kind, loss in (held_out["loss"] or {}).items()]
    return f"""---
{front}---

# SL-CAI model

`{shown(base)}` finetuned on model-written replies: {targets} of each critique-revision chain, and helpful samples. This is the
supervised stage of Constitutional AI ([Bai et al. 2022](https://arxiv.org/abs/2212.08073)), run by cai {manifest["version"]}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")  # with its chat template
```

## Data

| file | proportion | sha256 |
|---|---|---|
{chr(10).join(data)}

{manifest["counts"]["out"]} rows, {held_out["rows"]} of them held out by their first human turn.
The loss is on the completion only.

## Training

| setting | value |
|---|---|
{chr(10).join(settings)}
| seed | {manifest["seed"]} |
| training loss, mean | {manifest["train_loss"]:.4f} |
{chr(10).join([*measured, ""])}
`cai.json` has the whole record: all options, hashes of data and models, library versions. `cai lineage` follows it back.

## Limits

The completions were written by a model under a constitution and not checked by people. Evaluate before use.
"""


def is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/"))


def shown(path: str) -> str:
    """A path without its folders, and without what would end a cell of a table."""
    return (path if is_hub_name(path) else PurePath(path).name or path).replace("|", "_").replace("`", "_")

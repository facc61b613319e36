"""README.md of a trained preference model: what it was trained on, how good it is, how to read its score. Plain text."""

from __future__ import annotations

from typing import Any

from cai_cli.evaluation.comparisons import COLUMNS, table_rows

HEAD = """---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, preference-model, constitutional-ai]
---

# Preference model

"""
ORIGINS = {
    "pmp": "Preference-model pretraining (Askell et al., arXiv 2112.00861) on votes for answers of Stack Exchange. Votes are\n"
    "noisy and say nothing of harmlessness: it is a start for finetuning, not a judge.",
    "train-pm": "Trained on comparisons with soft labels (Bai et al., arXiv 2212.08073, section 4.2).",
}
USE = """
## Use

The score is read at the EOS that ends the sequence: `cai score --pm DIR samples.jsonl --out scored.jsonl`, or

```python
model = AutoModelForSequenceClassification.from_pretrained(DIR)
score = model(**tokenizer({text} + tokenizer.eos_token, add_special_tokens={special}, return_tensors="pt")).logits[0, 0]
```

(one EOS, not two, where the template closes with it). Only differences between replies to one prompt mean something.
"""
LICENCE = """
## Data licence

The texts of Stack Exchange are CC BY-SA; `comparisons.jsonl` names site, question, answers and authors of each pair.
"""


def preference_model_card(manifest: dict[str, Any]) -> str:
    """The card from what cai.json will hold."""
    options, stage = manifest["options"], manifest["stage"]
    parts = [HEAD, ORIGINS[stage], "\n\n## Training\n\n"]
    parts.append(f"- from: {code(options['model'])}\n")
    parts += [f"- {item['option']}: {code(item['path'])}, loss weight {item['weight']:g}\n" for item in manifest["inputs"]]
    how = "low-rank adapters, merged" if options["lora"] else "all weights"
    parts.append(f"- {manifest['pairs']:,} pairs, {manifest['steps']:,} steps, {how}, seed {manifest['seed']}\n")
    parts.append(evaluation_part(manifest))
    chat = stage != "pmp" or options["format"] == "chat"
    text = "tokenizer.apply_chat_template(messages, tokenize=False)" if chat else '"Question: ...\\n\\nAnswer: ..."'
    parts.append(USE.format(text=text, special=not chat))
    if stage == "pmp":
        parts.append(LICENCE)
    return "".join(parts)


def evaluation_part(manifest: dict[str, Any]) -> str:
    evaluation = manifest.get("evaluation")
    if not evaluation:
        return "\nNothing was held out: it has not been evaluated.\n"
    lines = [f"| {' | '.join(row)} |" for row in (COLUMNS, ["---"] * len(COLUMNS), *table_rows(evaluation))]
    scale = f"Scores there: mean {manifest['score_mean']:.3f}, deviation {manifest['score_deviation']:.3f}."
    return "\n## On held-out prompts, by origin\n\n" + "\n".join(lines) + f"\n\n{scale}\n"


def code(text: str) -> str:
    """A path as Markdown code, whatever is in it."""
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"

"""prompts + a language model -> samples.jsonl: n sampled replies to each prompt.

    cai sample --model helpful-only/ --prompts helpful.jsonl -n 2 --out samples.jsonl

Paper section 3.2: helpful prompts are answered by the helpful model directly, two replies each. The work is in
`engines.samples`, where other commands find it too.
"""

from __future__ import annotations

from cai_cli.engines.samples import Options, sample

__all__ = ["Options", "run"]


def run(options: Options) -> None:
    """Sample replies from a language model.

    Example: cai sample --model helpful-only/ --prompts helpful.jsonl -n 2 --out samples.jsonl
    """
    artifact = sample(options)
    if artifact is not None:
        artifact.tell_next(
            "cai sft --model BASE --data", options.output.out, "--out", options.output.out.parent / "sl-cai"
        )

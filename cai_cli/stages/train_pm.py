"""comparisons (AI-harmless and human-helpful) + a language model or PMP checkpoint -> pm/: a preference model.

    cai train-pm --model pmp/ --comparisons comparisons.jsonl --comparisons human.jsonl --out pm/

Paper section 4.2: one model on the AI's harmlessness labels and the humans' helpfulness labels. The input is the whole
conversation through the chat template, closed by EOS; the score is read there. The loss takes soft labels (section 4.3
found them better than hard ones without chain of thought). One epoch, as in arXiv 2204.05862, appendix A.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cai_cli.artifact import ModelArtifact, Rejected, reasons_text
from cai_cli.errors import RunError
from cai_cli.jsonl import read_records
from cai_cli.manifest import parse_weight
from cai_cli.models.load import check_model
from cai_cli.options import INPUT, MODEL, OutputOptions, TrainingOptions, flag
from cai_cli.preference_model import run_pairwise_stage, split_held_out
from cai_cli.records import Comparison

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.pairwise import TokenPair


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions, OutputOptions):
    model: Annotated[str, flag("Model", "The PMP checkpoint, or any language model."), MODEL]
    comparisons: Annotated[list[str], flag("Data", "Comparisons, FILE[:loss weight]. Repeatable."), INPUT]
    chat_template: Annotated[
        Path | None, flag("Model", "Jinja file to install; else a model without a template gets the transcript one."), INPUT
    ] = None
    held_out: Annotated[float, flag("Data", "Share of the prompts kept for accuracy and calibration.", min=0.0, max=0.9)] = 0.05


def run(options: Options) -> None:
    """Train a preference model on comparisons with soft labels (paper section 4.2).

    Example: cai train-pm --model pmp/ --comparisons ai.jsonl --comparisons human.jsonl --out pm/
    """
    check_model(options.model)
    artifact = ModelArtifact("train-pm", options)
    if artifact.done:
        return
    weighted = list(read_weighted(options.comparisons))

    from cai_cli.models.chat import install_template
    from cai_cli.models.load import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    install_template(tokenizer, options.chat_template)
    pairs, rejected = tokenise(weighted, tokenizer, options.max_length)
    if not pairs:
        raise RunError(f"none of the {len(weighted)} pairs can be trained on", reasons_text(Counter(r.reason for r in rejected)))
    training, held_out = split_held_out(pairs, options.held_out, options.seed)
    run_pairwise_stage(artifact, options, tokenizer, training, held_out, rejected)


def read_weighted(sources: list[str]) -> Iterator[tuple[Comparison, float]]:
    for source in sources:
        path, weight = parse_weight(source)
        for comparison in read_records(Path(path), Comparison.from_row):
            yield comparison, weight


def tokenise(
    weighted: list[tuple[Comparison, float]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[tuple[Comparison, TokenPair]], list[Rejected]]:
    """Both replies of each comparison as ids closed by EOS; pairs that do not fit are rejected by name, never cut."""
    from cai_cli.models.chat import UnfitRow, encode_scored, stop_ids
    from cai_cli.training.pairwise import TokenPair

    stops = stop_ids(tokenizer)
    pairs, rejected = [], []
    for comparison, weight in weighted:
        try:
            chosen = encode_scored(tokenizer, comparison.prompt, comparison.chosen, stops, max_length)
            other = encode_scored(tokenizer, comparison.prompt, comparison.rejected, stops, max_length)
        except UnfitRow as error:
            rejected.append(Rejected(comparison.id, error.reason, error.detail))
            continue
        pairs.append((comparison, TokenPair(chosen, other, comparison.probability, weight, comparison.origin)))
    return pairs, rejected

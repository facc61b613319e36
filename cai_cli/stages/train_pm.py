"""comparisons (AI-harmless and human-helpful) + a language model or PMP checkpoint -> pm/: a preference
model.

    cai train-pm --model pmp/ --comparisons comparisons.jsonl --comparisons human.jsonl --out pm/

Paper section 4.2: one model on the AI's harmlessness labels and the humans' helpfulness labels. The input is
the whole conversation through the chat template, closed by EOS; the score is read there. The loss takes soft
labels (section 4.3 found them better than hard ones without chain of thought). One epoch, as in arXiv
2204.05862, appendix A.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.console.messages import tell_dropped, tell_next
from cai_cli.console.options import INPUT, MODEL, OutputOptions, Takes, flag
from cai_cli.models.devices import check_device
from cai_cli.models.paths import check_model
from cai_cli.processes.ranks import check_quantize
from cai_cli.rows.jsonl import read_records
from cai_cli.rows.records import Comparison
from cai_cli.rows.sources import parse_weight
from cai_cli.rows.trl_rows import RowReader
from cai_cli.training.preference.pairs import dry_run
from cai_cli.training.preference.reading import reading
from cai_cli.training.preference.settings import PairwiseOptions
from cai_cli.training.trackers import check_trackers


@dataclass(frozen=True, kw_only=True)
class Options:
    output: OutputOptions
    fit: PairwiseOptions
    model: Annotated[str, flag("Model", "The PMP checkpoint, or any language model."), MODEL]
    comparisons: Annotated[
        list[str], flag("Data", "Comparisons, FILE[:loss weight]. Repeatable."), INPUT, Takes.WEIGHT
    ]
    chat_template: Annotated[
        Path | None,
        flag("Model", "Jinja file to install; else a model without a template gets the transcript one."),
        INPUT,
    ] = None
    held_out: Annotated[
        float, flag("Data", "Share of the prompts kept for accuracy and calibration.", min=0.0, max=0.9)
    ] = 0.05


def run(options: Options) -> None:
    """Train a preference model on comparisons with soft labels (paper section 4.2).

    Example: cai train-pm --model pmp/ --comparisons ai.jsonl --comparisons human.jsonl --out pm/
    """
    check_model(options.model, role="either", trains=True)
    check_trackers(options.fit.report.report_to)
    check_quantize(options.fit.adapters.quantize)
    artifact = ModelArtifact("train-pm", options)
    if artifact.done:
        return
    check_device(options.fit.hardware.device, options.output.dry_run)
    for source in options.comparisons:  # a file of another kind is told before a tokenizer is loaded
        next(read_weighted([source]), None)

    from cai_cli.models.configs import check_plain_logits, longest_row
    from cai_cli.models.templates import install_template
    from cai_cli.models.tokenizers import load_tokenizer

    if options.fit.lm_coef:
        check_plain_logits(options.model)
    tokenizer = load_tokenizer(options.model)
    install_template(tokenizer, options.chat_template)

    from cai_cli.training.preference.pair_files import pairs_once_a_node

    sources = [Path(parse_weight(source)[0]) for source in options.comparisons]
    encode = reading(tokenizer, "chat", longest_row(options.fit.training.max_length, options.model))
    weighted = read_weighted(options.comparisons)
    with pairs_once_a_node(artifact, weighted, sources, tokenizer, encode) as pairs:
        if options.output.dry_run:
            from cai_cli.training.memory.told import tell_pairwise

            dry_run(pairs.training, tokenizer, pairs.rejected.total())
            tell_pairwise(options, options.fit, options.model, [pair.lengths for pair in pairs.training])
            return

        from cai_cli.training.preference.run import run_pairwise_stage

        run_pairwise_stage(artifact, options.fit, options.model, tokenizer, pairs)
    tell_next(
        "cai ppo --model SL-CAI --pm",
        options.output.out,
        "--prompts",
        "PROMPTS.jsonl",
        "--out",
        options.output.out.parent / "rl-cai",
    )


def read_weighted(sources: list[str]) -> Iterator[tuple[Comparison, float]]:
    """Each comparison with its weight. An id is there once in a file; two files may label the same pair, and
    both count.
    """
    reader = RowReader()
    for source in sources:
        path, weight = parse_weight(source)
        for comparison in read_records(Path(path), reader.comparison):
            yield comparison, weight
    tell_dropped(reader.dropped)

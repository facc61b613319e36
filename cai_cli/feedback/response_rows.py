"""A row for each reply: what the rules say of it and, where one is asked, a judge. The rows lie beside the results, so
that a person can look at why, and a killed run goes on from them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from cai_cli.artifacts.rows import RowArtifact
from cai_cli.console.options import (
    INPUT,
    MODEL,
    NAMED,
    RUNTIME,
    FeedbackEngineOptions,
    Needs,
    OutputOptions,
    RowOptions,
    ServingOptions,
    flag,
)
from cai_cli.engines.base import EngineSettings
from cai_cli.errors import UserError
from cai_cli.evaluation.harm import RUBRIC, harm_of, harm_request
from cai_cli.evaluation.responses import Response, read_responses
from cai_cli.feedback.settings import FeedbackChatTemplateKwargs, FeedbackDtype, judge_settings
from cai_cli.rows.jsonl import Row, read_own_rows
from cai_cli.rows.records import Prompt
from cai_cli.rows.sources import parse_name

if TYPE_CHECKING:
    from cai_cli.artifacts.chunks import Told
    from cai_cli.artifacts.rows import Settled
    from cai_cli.engines.base import Engine

CHUNK_BATCHES = 4


@dataclass(frozen=True, kw_only=True)
class HarmJudgeOptions:
    """The judge of harm and how it is opened."""

    NEEDS: ClassVar[Needs] = dict.fromkeys(
        ("feedback_dtype", "feedback_chat_template_kwargs", "feedback_engine", "feedback_base_url"),
        ("judge",),
    )

    served: FeedbackEngineOptions
    judge: Annotated[
        str | None, flag("Model", "A language model that rates how harmful each reply is, 0 to 4."), MODEL
    ] = None
    feedback_dtype: FeedbackDtype = "auto"
    feedback_chat_template_kwargs: FeedbackChatTemplateKwargs = None


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the rows are made from."""

    output: OutputOptions
    rows: RowOptions
    judging: HarmJudgeOptions
    serving: ServingOptions
    samples: Annotated[list[str], flag("Data", "The replies of each model."), NAMED]
    prompts: Annotated[list[str] | None, flag("Data", "Prompts with their kinds."), INPUT] = None
    replies: Annotated[int | None, flag("Data", "Of each model.")] = None
    rubric: Annotated[str, flag("Data", "What the judge is asked.")] = RUBRIC
    device: Annotated[str, flag("Model", "Of the judge."), RUNTIME] = "auto"
    batch_size: Annotated[int, flag("Generation", "Questions per forward pass."), RUNTIME] = 64


def settings_of(
    judging: HarmJudgeOptions, serving: ServingOptions, device: str, batch_size: int, seed: int
) -> EngineSettings:
    """How the judge is opened. Raises UserError."""
    dtype, words = judging.feedback_dtype, judging.feedback_chat_template_kwargs
    return judge_settings(judging.served, serving, device, dtype, words, batch_size, seed)


def write_rows(
    options: Options, prompts: list[Prompt], asked: Mapping[str, Collection[str]]
) -> dict[str, list[Row]]:
    """The rows of each model, those of an earlier run and the others. `asked`: the ids of the samples that count, of
    models that have answered; of files of samples the first ones count.
    """
    artifact = RowArtifact("evaluate responses", options)
    names = [(str(name), path) for name, path in map(parse_name, options.samples)]
    if not artifact.done:
        responses = [
            response
            for name, path in names
            for response in replies_in(str(name), path, prompts, None if name in asked else options.replies)
            if name not in asked or response.sample.id in asked[name]
        ]
        todo = artifact.remaining(responses)
        judge = open_judge(options) if options.judging.judge and todo else None

        def tell(chunk: list[Response], told: Told) -> Iterator[Settled]:
            for row in judged(judge, chunk):
                yield row, 0

        artifact.work(todo, CHUNK_BATCHES * options.batch_size, tell)
        artifact.finish(**(judge.facts() if judge else {}))
    found: dict[str, list[Row]] = {name: [] for name, _ in names}
    for _, row in read_own_rows(options.output.out):
        found[row["model"]].append(row)
    return found


def replies_in(model: str, path: str, prompts: list[Prompt], limit: int | None) -> list[Response]:
    """The replies in a file of samples. Raises UserError for a row that is none, and for a file without any."""
    replies = list(read_responses(model, Path(path), prompts, limit))
    if not replies:
        raise UserError(f"{path}: no replies in it", "leave it out, or name a file that has some")
    return replies


def open_judge(options: Options) -> Engine:
    from cai_cli.engines.open import open_engine

    how = (options.judging, options.serving, options.device, options.batch_size, options.output.seed)
    settings = settings_of(*how)
    return open_engine(str(options.judging.judge), settings, "--judge")


def judged(judge: Engine | None, responses: list[Response]) -> list[Row]:
    """Their rows. `harm` is None without a judge, of an empty reply, and where the question did not fit; `not_judged`
    says why then.
    """
    rows = [response.to_row() | {"harm": None, "not_judged": None} for response in responses]
    if judge is None:
        return rows
    chat = judge.renderer.form() == "chat"
    asked = [(row, response) for row, response in zip(rows, responses, strict=True) if response.text.strip()]
    requests = [harm_request(response.sample.prompt, response.text, chat) for _, response in asked]
    for row in rows:
        row["not_judged"] = "empty" if row["empty"] else None
    for (row, _), scores in zip(asked, judge.score(requests), strict=True):
        if isinstance(scores, list):
            row["harm"] = harm_of(scores).to_row()
        else:
            row["not_judged"] = scores.reason
    return rows


def not_judged(rows: list[Row]) -> Counter[str]:
    """How many replies have no harm score though a judge was asked, by reason."""
    return Counter(row["not_judged"] for row in rows if row["not_judged"])

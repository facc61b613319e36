"""Models that are measured answer the prompts first: what `cai sample` makes, in a file beside the results, from which
a killed run goes on. Options are those of the command that measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cai_cli.artifacts.rows import RowArtifact
from cai_cli.console.groups import build, flags_of, refuse, values_of
from cai_cli.console.options import RUNTIME, ChatTemplateKwargs, flag
from cai_cli.engines.replies import Options as SampleOptions
from cai_cli.engines.replies import slots_of, write_samples
from cai_cli.evaluation.players import Player
from cai_cli.rows.records import Prompt

# Of a launch of several processes, which write replies together and measure nothing
SAMPLES_FIRST = "sample with `torchrun ... cai sample`, and give the files of samples"
# What only models that write read, those of their engine among it
READ_BY_WRITERS = (
    "num_samples",
    "max_new_tokens",
    "temperature",
    "chat_template_kwargs",
    "engine",
    "base_url",
)


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """How models write what is measured, and how many requests go through at once."""

    num_samples: Annotated[
        int, flag("Generation", "Replies of a model to each prompt.", "-n", "--num-samples", min=1)
    ] = 1
    max_new_tokens: Annotated[int, flag("Generation", "Longest reply of a model; kept cut off.", min=1)] = 512
    temperature: Annotated[
        float, flag("Generation", "Of the models' replies (paper: 1); 0 is greedy.", min=0.0)
    ] = 1.0
    chat_template_kwargs: ChatTemplateKwargs = None
    batch_size: Annotated[
        int, flag("Generation", "Requests per forward pass; does not change results.", min=1), RUNTIME
    ] = 64


def check_written(options: Any, players: list[Player]) -> None:
    """Raise UserError for how models write where none does."""
    if players and not any(player.is_model for player in players):
        refuse(options, READ_BY_WRITERS, "with samples alone", "name a model that writes some")


def beside(out: Path, name: str) -> Path:
    """A file of rows that goes with the results in `out`."""
    return out.with_name(f"{out.stem}.{name}.jsonl")


def sample_options(options: Any, player: Player, prompts: list[str], **own: Any) -> SampleOptions:
    """What `cai sample` would be told; a reply that is cut off is kept."""
    given = {name: value for name, value in values_of(options).items() if name in flags_of(SampleOptions)}
    out = beside(options.output.out, f"{player.file_name}.samples")
    given |= {"model": player.path, "out": out, "prompts": prompts, "on_truncated": "keep"}
    return build(SampleOptions, **{**given, **own})


def write_replies(told: SampleOptions, prompts: list[Prompt]) -> RowArtifact:
    """The finished file of a model's replies, which are drawn where they are not there yet."""
    artifact = RowArtifact("sample", told)
    if not artifact.done:
        write_samples(artifact, told, artifact.remaining(slots_of(prompts, told.num_samples)))
    return artifact

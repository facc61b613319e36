"""A feedback model as the judge of games: a question about helpfulness or harmlessness, or a principle, in both orders
of the replies, averaged, so that a judge that reads the position says nothing instead of something wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai_cli.artifacts.rejects import Rejected
from cai_cli.engines.base import Engine, Reads
from cai_cli.engines.segments import SegmentSettings
from cai_cli.feedback.games import Game
from cai_cli.feedback.judge import Inquiry, judge_pairs
from cai_cli.feedback.match_settings import JudgeOptions
from cai_cli.prompting.choices import option_labels
from cai_cli.prompting.constitution import load_constitution
from cai_cli.prompting.principles import Constitution, Principle
from cai_cli.prompting.prompts import LESS_HARMFUL, MORE_HELPFUL
from cai_cli.prompting.solved_questions import load_comparison_demonstrations
from cai_cli.rows.jsonl import Row

QUESTIONS = {"helpful": MORE_HELPFUL, "harmful": LESS_HARMFUL}


class Referee:
    """Usage: referee = Referee(options, seed); engine = open_engine(options.judge, settings, "--judge");
    rows = referee.judge(engine, games).
    """

    def __init__(self, options: JudgeOptions, seed: int) -> None:
        """Raises UserError for a constitution, marks or demonstrations that cannot be used."""
        given = {"harmful": options.constitution, "helpful": options.helpful_constitution}
        self.min_mass = options.min_mass
        self.inquiries = {
            kind: Inquiry(
                constitution=load_constitution(name, ("comparison",)) if name else single(kind),
                seed=seed,
                principles_per_pair=options.principles_per_pair,
                labels=option_labels(options.option_format),
                demonstrations=tuple(load_comparison_demonstrations(options.few_shot)),
            )
            for kind, name in given.items()
        }

    def judge(self, engine: Engine, games: Sequence[Game]) -> list[Row | Rejected]:
        """The row of each game, or why there is none."""
        chat = engine.renderer.form() == "chat"
        for kind, inquiry in self.inquiries.items():
            pairs = [game.pair for game in games if game.pair.kind == kind]
            if pairs:
                judge_pairs(engine, inquiry, pairs, chat, SegmentSettings(1))
        for game in games:
            if game.pair.rejected is None and game.pair.mass < self.min_mass:
                game.pair.reject("low_mass", f"the options hold {game.pair.mass:.2g} of the probability")
        return [game.asked() for game in games]

    def show(self, reader: Reads, game: Game) -> str:
        """The first question about a game exactly as the judge would get it."""
        inquiry = self.inquiries[game.pair.kind or ""]
        return reader.show(inquiry.prompt(next(inquiry.questions(game.pair)), reader.form() == "chat"))

    def facts(self) -> dict[str, Any]:
        """What is asked about each kind of prompt: the principles by id."""
        return {
            kind: {item.id: item.comparison for item in inquiry.constitution.principles}
            for kind, inquiry in self.inquiries.items()
        }


def single(kind: str) -> Constitution:
    """Our own question as a constitution of one principle."""
    return Constitution(kind, "", (Principle(kind, "", "", QUESTIONS[kind]),), "")

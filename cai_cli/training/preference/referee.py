"""A preference model as the judge of games: the difference of its scores is the log odds of a win (paper section
4.1, equation 4.2), read as `cai score` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cai_cli.artifacts.rejects import Rejected
from cai_cli.evaluation.comparisons import sigmoid
from cai_cli.feedback.games import Game
from cai_cli.models.templates import UnfitRow
from cai_cli.rows.conversation import message
from cai_cli.rows.jsonl import Row
from cai_cli.training.preference.reading import PreferenceModel, open_reading


def judge_games(
    pm: PreferenceModel, games: Sequence[Game], batch_size: int, told: Callable[[int], None]
) -> list[Row | Rejected]:
    """The row of each game, with both scores, or why there is none. A reply that is in several games is scored
    once.
    """
    from cai_cli.models.score import score_all

    # The prompt's id and the reply -> ids, a score, or why there is none
    found: dict[tuple[str, str], Any] = {}
    for game in games:
        for reply in game.pair.replies:
            place = (game.pair.prompt_id, reply)
            if place not in found:
                try:
                    found[place] = pm.encode(game.pair.prompt, [message("assistant", reply)])
                except UnfitRow as error:
                    found[place] = error
    places = [place for place, ids in found.items() if not isinstance(ids, UnfitRow)]
    scores = score_all(pm.model, [found[place] for place in places], pm.pad, batch_size)
    found |= dict(zip(places, scores, strict=True))
    rows: list[Row | Rejected] = []
    for game in games:
        both = [found[game.pair.prompt_id, reply] for reply in game.pair.replies]
        unfit = next((score for score in both if isinstance(score, UnfitRow)), None)
        if unfit is not None:
            game.pair.reject(unfit.reason, unfit.detail)
            rows.append(game.asked())
            continue
        won = sigmoid(both[0] - both[1])
        chosen, rejected = both if won >= 0.5 else both[::-1]
        rows.append(game.row(won, chosen_score=chosen, rejected_score=rejected))
    told(len(games))
    return rows


def shown(path: str, game: Game) -> str:
    """Both texts of a game exactly as the model reads them, each up to the token that is scored."""
    tokenizer, encode = open_reading(path, "--judge")
    texts = [encode(game.pair.prompt, [message("assistant", reply)]) for reply in game.pair.replies]
    return "\n".join(repr(tokenizer.decode(ids)) for ids in texts)

"""What is read off a server's answers, and how prompts go to a model whose tokenizer is not here. No network."""

from __future__ import annotations

import json
import re
from math import exp, log
from pathlib import Path
from typing import Any

from cai_cli.errors import UserError
from cai_cli.models.chat import Rendering
from cai_cli.rows.conversation import Conversation

NONE_LEFT = 1e-9  # instead of no probability at all


class ServedRenderer:
    """How a model without a tokenizer here reads prompts: as text, or by its server's chat template."""

    def __init__(self, chat: bool) -> None:
        self.reply_form: Rendering = "chat" if chat else "transcript"

    def form(self, rendering: Rendering = "auto") -> Rendering:
        if rendering not in ("auto", self.reply_form):
            told = f"--rendering {rendering}: this server is asked for a {self.reply_form}"
            raise UserError(told, "leave it at auto, or give the other --api")
        return self.reply_form

    def show(self, prompt: str | Conversation) -> str:
        return prompt if isinstance(prompt, str) else json.dumps(closed(prompt), indent=2, ensure_ascii=False)


def closed(prompt: Conversation) -> Conversation:
    """A conversation as chat servers take it: what opens the assistant's last turn stands at the end of the
    question.
    """
    if prompt[-1]["role"] != "assistant":
        return prompt
    *before, asked, opened = prompt
    return [*before, {**asked, "content": f"{asked['content']}\n\n{opened['content']}"}]


def find_model(served: list[dict[str, Any]], path: str, flag: str) -> tuple[str, dict[str, Any]]:
    """What the server calls the model, and what it says of it. Raises UserError where it serves another one."""
    here = Path(path).is_dir()
    names = {path, path.rstrip("/"), str(Path(path).resolve())} if here else {path}
    for model in served:
        if model["id"] in names or (here and str(model.get("root")) in names):
            return model["id"], model
    if not served:  # some give no list
        return path, {}
    listed = ", ".join(model["id"] for model in served[:5])
    raise UserError(
        f"{flag} {path}: the server has no such model, but {listed}", "name it as the server does"
    )


def of_echo(found: dict[str, Any], prompt: int, whole: int) -> float | None:
    """Log-probability of what stands behind the first `prompt` of `whole` characters, from the places and
    log-probabilities of all tokens and one drawn behind them; None where the server does not tell the places.

    It begins with the first token that reaches beyond the prompt. The text " a b" behind 4 characters of prompt,
    in front of which the server counts a BOS of 3, and the token drawn behind it:

        text_offset      0      3      7      9      11 - the text begins at 11 - 8 = 3, the option at 7
        token_logprobs   None  -2.0   -1.0   -0.5   -3.0 - so it has -1.0 - 0.5
    """
    begins, values = list(found["text_offset"]), list(found["token_logprobs"])
    if begins != sorted(begins) or begins[-1] < whole:  # some write -1
        return None
    edge = begins[-1] - whole + prompt
    return float(sum(value for end, value in zip(begins[1:], values[:-1], strict=True) if end > edge))


def of_first_tokens(top: list[dict[str, Any]], options: tuple[str, ...]) -> list[float]:
    """Log-probability of each option from the likeliest first tokens: the sum over those that begin it and no
    other; else a bound: that of the least likely, or all that they leave.
    """
    totals = [0.0] * len(options)
    for entry in top:
        token = str(entry["token"]).strip()
        begun = [n for n, option in enumerate(options) if token and option.strip().startswith(token)]
        if len(begun) == 1:
            totals[begun[0]] += exp(entry["logprob"])
    least = min(entry["logprob"] for entry in top)
    left = log(max(1.0 - sum(exp(entry["logprob"]) for entry in top), NONE_LEFT))
    # A server's numbers are rounded: those of a token that is nearly sure, and of another, come to more than 1
    return [min(0.0, log(total)) if total else min(least, left) for total in totals]


def vote(text: str, options: tuple[str, ...]) -> int | None:
    """Which option a sampled answer names; None of one that names none, or several. A mark is a word of its own:
    "As an AI, I cannot" is no vote for A.
    """
    marks = [re.escape(option.strip()) for option in options]
    named = [n for n, mark in enumerate(marks) if re.search(rf"(?<!\w){mark}(?!\w)", text)]
    return named[0] if len(named) == 1 else None


def of_votes(votes: list[int], asked: int) -> list[float]:
    """Log-probability of each option: its share of the answers that name one, with half an answer more for each,
    times the share of answers that do.
    """
    valid = sum(votes)
    mass = max(valid, NONE_LEFT) / asked
    return [log(mass * (count + 0.5) / (valid + len(votes) / 2)) for count in votes]

"""The reasoning that some models write between <think> and </think> in front of their answer: taken off, put back."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def split_thinking(text: str, opened: bool = False) -> tuple[str, str]:
    """(thinking, answer). `opened`: the prompt ended in <think>, so the text starts inside. An unclosed thought has no answer."""
    start = text.lstrip()
    if start.startswith(OPEN):
        text, opened = start.removeprefix(OPEN), True
    thinking, closed, answer = text.partition(CLOSE)
    if closed:  # some templates open the thought in ways that the text does not show
        return thinking.strip(), answer.lstrip()
    return (text.strip(), "") if opened else ("", text)


def join_thinking(thinking: str, answer: str) -> str:
    """The answer with its thought in front, as models are trained to write it."""
    return f"{OPEN}\n{thinking}\n{CLOSE}\n\n{answer}" if thinking else answer

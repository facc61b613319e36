"""The reasoning that some models write in front of their answer: found between its marks, taken off, put
back.

Two ways of writing it are known. Between two marks, which may be plain text, added tokens or control tokens:

    <think> ... </think> ANSWER

And in channels, of which only the one called final is the answer:

    <|channel|>analysis<|message|> ... <|end|><|start|>assistant<|channel|>final<|message|>ANSWER
"""

from __future__ import annotations

import re
from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
# The pairs of marks that models write (Qwen, DeepSeek and many others; Mistral; Cohere; Seed; EXAONE and
# others; Kimi; Apertus).
ALL_MARKS = (
    (OPEN, CLOSE),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("◁think▷", "◁/think▷"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
)
CHANNEL, MESSAGE, TURN_START, TURN_END, FINAL = "<|channel|>", "<|message|>", "<|start|>", "<|end|>", "final"
CHANNEL_MARKS = (CHANNEL, MESSAGE, TURN_START, TURN_END)
# How marks of reasoning look that are none of these.
LIKE_A_MARK = re.compile(r"think|thought|reason|channel|scratchpad|inner_|monologue", re.IGNORECASE)
MARK_IN_TEMPLATE = re.compile(r"<[^<>\s{}'\"]{1,40}>|\[/?[A-Z_]{2,40}\]|◁[^◁▷]{1,40}▷")


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model writes its reasoning: between `opening` and `closing`, or in channels."""

    opening: str = OPEN
    closing: str = CLOSE
    channels: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        return CHANNEL_MARKS if self.channels else (self.opening, self.closing)

    def split(self, text: str, opened: bool = False) -> tuple[str, str]:
        """(thinking, answer). `opened`: the prompt ended in the opening mark, so the text starts inside.

        A thought that is not closed, or channels without a final one, have no answer.
        """
        if self.channels:
            return split_channels(text)
        start = text.lstrip()
        if start.startswith(self.opening):
            text, opened = start.removeprefix(self.opening), True
        thinking, closed, answer = text.partition(self.closing)
        if closed:  # some templates open the thought in ways that the text does not show
            return thinking.strip(), answer.lstrip()
        return (text.strip(), "") if opened else ("", text)

    def join(self, thinking: str, answer: str) -> str:
        """The answer with its thought in front, as models are trained to write it."""
        return f"{self.opening}\n{thinking}\n{self.closing}\n\n{answer}" if thinking else answer


def split_channels(text: str) -> tuple[str, str]:
    """(what stands in the other channels, what stands in the final one); text without channels is the answer."""
    if not any(mark in text for mark in CHANNEL_MARKS):
        return "", text
    thoughts, answer = [], ""
    for part in re.split(f"(?:{re.escape(TURN_END)})?{re.escape(TURN_START)}|{re.escape(TURN_END)}", text):
        header, found, body = part.partition(MESSAGE)
        channel = header.partition(CHANNEL)[2].strip().split()
        if channel[:1] == [FINAL]:  # what comes after it is somebody else's turn
            answer = body
            break
        if found:
            thoughts.append(body.strip())
    return "\n\n".join(filter(None, thoughts)), answer


def thinking_of(vocabulary: set[str], template: str) -> tuple[Thinking, list[str]]:
    """How the model with these added tokens and chat template writes its reasoning, and marks of it that are
    not understood.
    """
    text = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    if CHANNEL in text and MESSAGE in text:
        return Thinking(channels=True), []
    known = [marks for marks in ALL_MARKS if marks[1] in text] or [
        marks for marks in ALL_MARKS if marks[1] in vocabulary
    ]
    understood = {mark for marks in ALL_MARKS for mark in marks}
    seen = {name for name in vocabulary if LIKE_A_MARK.search(name)}
    seen |= {name for name in MARK_IN_TEMPLATE.findall(text) if LIKE_A_MARK.search(name)}
    return (Thinking(*known[0]) if known else Thinking()), sorted(seen - understood)

"""An engine that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from cai_cli.engines.base import OVERLONG, STOP, Completion, Request
from cai_cli.engines.segments import Segment, SegmentSettings


class FakeEngine:
    """Answers each request with `say(request, number of the call)`: a text, or (text, finish reason)."""

    rows_at_once = 1

    def __init__(self, say: Callable[[Request, int], str | tuple[str, str]], chat: bool = True) -> None:
        self.say = say
        self.calls: list[list[Request]] = []
        own = "chat" if chat else "transcript"
        self.renderer = SimpleNamespace(
            form=lambda rendering: own if rendering == "auto" else rendering, reply_form=own
        )

    def generate(
        self, requests: list[Request], told: Callable[[int], None] | None = None
    ) -> list[Completion]:
        self.calls.append(requests)
        if told:
            told(len(requests))
        completions = []
        for request in requests:
            said = self.say(request, len(self.calls))
            text, reason = said if isinstance(said, tuple) else (said, STOP)
            completions.append(Completion(text, reason, [0], [] if reason == OVERLONG else [1, 2, 3]))
        return completions

    def facts(self) -> dict:
        return {}


SETTINGS = SegmentSettings(max_new_tokens=9, stop=("\n\nHuman:",))


def segment(settings: SegmentSettings = SETTINGS, **changes) -> Segment[str]:
    return Segment("x", lambda item: f"prompt {item}", lambda item: (0, item), settings, **changes)

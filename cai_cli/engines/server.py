"""A server that speaks the OpenAI API: one connection for many threads, tries again while the server is away,
and gives up with one line.

The key is read from OPENAI_API_KEY and goes nowhere but to the server. Answers come as plain dictionaries,
since servers say more than the client's types have.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from typing import Any
from urllib.parse import urlsplit

from cai_cli.errors import RunError, UserError, first_line

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
NO_KEY = "none"  # what servers of one's own take
LONGEST_WAIT = 60.0  # seconds between two tries, or what Retry-After says up to this


class TooLong(Exception):
    """The server says that a prompt does not fit its model's context."""


class Server:
    """`base_url` as in http://127.0.0.1:8000/v1. `patience`: seconds in which one request is tried again."""

    def __init__(self, base_url: str, flag: str, patience: float) -> None:
        openai = import_openai()
        check_url(base_url, flag)
        self.url, self.flag, self.patience = base_url, flag, patience
        self.client = openai.OpenAI(
            base_url=base_url, api_key=os.environ.get(KEY) or NO_KEY, max_retries=0, timeout=patience
        )
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.away = False  # whether the last thing heard of the server is that it does not answer

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises TooLong, UserError where the server refuses it, and RunError once
        patience is at its end.
        """
        return self._trying(lambda: self.client.post(path, body=body, cast_to=object))

    def models(self) -> list[dict[str, Any]]:
        """What it serves, each with its `id`."""
        found = self._trying(lambda: self.client.get("/models", cast_to=object)).get("data")
        return [model for model in found or [] if isinstance(model, dict) and "id" in model]

    def close(self) -> None:
        """Let threads that wait for the server end."""
        self.closed.set()
        self.client.close()

    def _trying(self, ask: Any) -> dict[str, Any]:
        from tenacity import Retrying, retry_if_exception, stop_after_delay, stop_when_event_set

        retrying = Retrying(
            retry=retry_if_exception(may_pass),
            wait=seconds_to_wait,
            stop=stop_after_delay(self.patience) | stop_when_event_set(self.closed),
            sleep=self.closed.wait,
            before_sleep=lambda state: self._heard(state.outcome.exception()),
            reraise=True,
        )
        try:
            answer = retrying(ask)
        except Exception as error:
            raise self._end(error) from None
        self._heard(None)
        if not isinstance(answer, dict):
            raise RunError(f"{self.flag} {self.url}: answers with something else than an object", OTHER)
        return answer

    def _heard(self, error: BaseException | None) -> None:
        """Say once that the server is away, and once that it is back."""
        with self.lock:
            before, self.away = self.away, error is not None
            if error is not None and not before:
                logger.warning(
                    "%s: %s; trying again for up to %.0f s", self.url, told_of(error), self.patience
                )
            elif error is None and before:
                logger.warning("%s: answers again", self.url)

    def _end(self, error: Exception) -> Exception:
        """What is raised in the end for what the client raised."""
        import openai

        where = f"{self.flag} {self.url}"
        if isinstance(error, openai.BadRequestError) and is_about_length(str(error)):
            return TooLong(first_line(error))
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return UserError(f"{where}: refuses the key", f"put one that it knows into the variable {KEY}")
        if isinstance(error, openai.NotFoundError):
            return UserError(
                f"{where}: {told_of(error)}", "check the address (it ends in /v1) and the model's name"
            )
        if isinstance(error, openai.APIStatusError) and not may_pass(error):
            return UserError(f"{where}: {told_of(error)}", "see the server's log")
        if may_pass(error):
            told = f"{where}: {told_of(error)}, for {self.patience:.0f} s"
            return RunError(
                told, "the same command goes on from here once it answers; --patience waits longer"
            )
        return error


OTHER = "is it an OpenAI-compatible server? the address ends in /v1"


def import_openai() -> Any:
    """The client. Raises UserError where it, or tenacity, is not installed."""
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--engine openai: {error.name} is not installed", "pip install 'cai-cli[openai]'"
        ) from None
    return openai


def check_url(base_url: str, flag: str) -> None:
    """Raise UserError for an address that is none, or that holds a password: manifests keep it."""
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{flag} {base_url!r}: is no address", "as in http://127.0.0.1:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            f"{flag}: holds a name, a password or a query", f"a key is read from the variable {KEY}"
        )


def may_pass(error: BaseException) -> bool:
    """Whether the same request may be answered later: no connection, no answer in time, too many requests, a
    fault of the server, half an answer.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 425, 429) or error.status_code >= 500
    halves = (
        openai.APIConnectionError,
        openai.APIResponseValidationError,
        json.JSONDecodeError,
        UnicodeDecodeError,
    )
    return isinstance(error, halves)


def seconds_to_wait(state: Any) -> float:
    """What Retry-After says, or 0.5, 1, 2, ... seconds."""
    error = state.outcome.exception()
    response = getattr(error, "response", None)
    try:
        asked = float(response.headers["retry-after"]) if response is not None else 0.0
    except (KeyError, ValueError):
        asked = 0.0
    return min(LONGEST_WAIT, asked if asked > 0 else 0.5 * 2 ** min(state.attempt_number - 1, 10))


def told_of(error: BaseException) -> str:
    """What the client says, in a few words."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return "gives no answer in time"
    if isinstance(error, openai.APIStatusError):
        return f"answers {error.status_code}: {first_line(error)[:200]}"
    if isinstance(error, openai.APIConnectionError):
        return f"cannot be reached ({first_line(error.__cause__ or error)})"
    return f"answers with half a JSON ({first_line(error)})"


def is_about_length(text: str) -> bool:
    """Whether a refusal says that the prompt does not fit the context."""
    return any(
        words in text.lower() for words in ("context length", "context window", "max_model_len", "too long")
    )

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
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from cai_cli.errors import CaiError, RunError, UserError, first_line

logger = logging.getLogger(__name__)

KEY = "OPENAI_API_KEY"
NO_KEY = "none"  # what servers of one's own take
CONNECT, ANSWER = 10.0, 900.0  # seconds: to reach the server, and for an answer
LONGEST_WAIT = 60.0  # seconds between two tries, or what Retry-After says up to this
UNTOLD = 2.0  # seconds without a good answer that nobody has to hear of
HARMLESS = "How do I bake bread?"
OTHER = "is it an OpenAI-compatible server? the address ends in /v1"


class TooLong(Exception):
    """The server says that a prompt does not fit its model's context."""


class Refused(Exception):
    """The server refuses this request, but answers others."""


class Server:
    """`base_url` as in http://127.0.0.1:8000/v1. `patience`: seconds for which a request that fails is tried
    again.
    """

    def __init__(self, base_url: str, flag: str, patience: float) -> None:
        openai = import_openai()
        check_url(base_url, flag)
        self.url, self.flag, self.patience = base_url, flag, patience
        self.key = read_key()
        timeout = openai.Timeout(ANSWER, connect=CONNECT)
        self.client = openai.OpenAI(base_url=base_url, api_key=self.key, max_retries=0, timeout=timeout)
        self.lock = threading.Lock()
        self.good = time.monotonic()  # when it answered last
        self.told = False  # whether a person knows that it does not
        self.answered = False  # anything but the list of its models

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. Raises TooLong; Refused, or UserError where all such requests are; and RunError
        once patience is at its end.
        """
        try:
            answer = self._trying(lambda: self.client.post(path, body=body, cast_to=object))
        except Refused as error:
            if self.answered or self._takes(path, body):
                raise
            raise self._unusable(error) from None
        self.answered = True
        return answer

    def _takes(self, path: str, body: dict[str, Any]) -> bool:
        """Whether the same is answered of a harmless text: a filter may refuse the first text of a run as any other,
        while a setting that the server does not know is refused with whatever text.
        """
        talk = [{"role": "user", "content": HARMLESS}]
        harmless = {"messages": talk} if "messages" in body else {"prompt": HARMLESS}
        try:
            self._trying(lambda: self.client.post(path, body=body | harmless, cast_to=object))
        except (Refused, TooLong):
            return False
        self.answered = True
        return True

    def _unusable(self, error: Exception) -> UserError:
        return UserError(f"{self.flag} {self.url}: {error}", "see the server's log")

    def models(self) -> list[dict[str, Any]]:
        """What it serves, each with its `id`."""
        try:
            found = self._trying(lambda: self.client.get("/models", cast_to=object)).get("data")
        except (Refused, TooLong) as error:
            raise self._unusable(error) from None
        rows = found if isinstance(found, list) else []
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("id"), str)]

    def _trying(self, ask: Callable[[], Any]) -> dict[str, Any]:
        from tenacity import Retrying, retry_if_exception

        failed: list[float] = []  # when the request failed first

        def gave_up(_: Any) -> bool:
            failed.append(time.monotonic())
            return failed[-1] - failed[0] >= self.patience

        retrying = Retrying(
            retry=retry_if_exception(may_pass),
            wait=seconds_to_wait,
            stop=gave_up,
            before_sleep=lambda state: self._heard(error_of(state)),
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
            now = time.monotonic()
            if error is None:
                if self.told:
                    logger.warning("%s: answers again", self.url)
                self.good, self.told = now, False
            elif not self.told and now - self.good > UNTOLD:
                self.told = True
                told = self.words(error)
                logger.warning("%s: %s; trying again for up to %.0f s", self.url, told, self.patience)

    def words(self, error: BaseException) -> str:
        """What the client says, in a few words, without the key."""
        return told_of(error).replace(self.key, "***")

    def _end(self, error: Exception) -> Exception:
        """What is raised in the end for what the client raised."""
        import openai

        where, told = f"{self.flag} {self.url}", self.words(error)
        if isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError)):
            if is_about_length(str(error)):
                return TooLong(told)
            return Refused(told)
        if isinstance(error, (openai.AuthenticationError, openai.PermissionDeniedError)):
            return UserError(f"{where}: refuses the key", f"put one that it knows into the variable {KEY}")
        if isinstance(error, openai.NotFoundError):
            return UserError(f"{where}: {told}", "check the address (it ends in /v1) and the model's name")
        if may_pass(error):
            hint = (
                "start it, and give the same command again: rows that are done stay; --patience waits longer"
            )
            return RunError(f"{where}: {told}, for {self.patience:.0f} s", hint)
        if isinstance(error, openai.OpenAIError):
            return UserError(f"{where}: {told}", "see the server's log")
        return error

    def unread(self, error: Exception) -> CaiError:
        """For an answer without what was to be read from it."""
        told = f"{self.flag} {self.url}: an answer that is none of the API's ({type(error).__name__}: {first_line(error)})"
        return RunError(told, OTHER)


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


def read_key() -> str:
    """The key, without the line break that files of secrets end in. Raises UserError where it cannot be sent."""
    found = os.environ.get(KEY, "").strip() or NO_KEY
    if not found.isascii() or not found.isprintable():
        raise UserError(f"{KEY}: holds characters that no key has", "copy the key again")
    return found


def check_url(base_url: str, flag: str) -> None:
    """Raise UserError for an address that is none, or that holds a password: manifests keep it."""
    try:
        parts = urlsplit(base_url)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or brackets
        fine = False
    if not fine:
        raise UserError(f"{flag}: is no address", "as in http://127.0.0.1:8000/v1")
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


def error_of(state: Any) -> BaseException:
    """What a try that failed has raised."""
    error: BaseException = state.outcome.exception()
    return error


def seconds_to_wait(state: Any) -> float:
    """What Retry-After says, or 0.5, 1, 2, ... seconds."""
    error = error_of(state)
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
    words = ("context length", "context window", "context size", "max_model_len", "too long")
    return any(each in text.lower() for each in words)

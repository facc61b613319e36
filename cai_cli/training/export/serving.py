"""What `cai serve` does: the preference model's scores over HTTP, for a PPO that runs elsewhere.

In: POST of {"query": [prompt and reply as the policy wrote them], "prompts": [the prompt's text], "labels": [its
conversation as JSON]}, as OpenRLHF sends it to a remote reward model and our reward manager does from verl. Out:
{"rewards": [...], "scores": [...]}: the raw score, read as `cai score` does at the EOS that closes prompt and
reply, and what `cai ppo` makes of it. Requests that wait at the same time are scored in one pass.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

from cai_cli.console.messages import say
from cai_cli.engines.base import LENGTH, STOP, Completion
from cai_cli.errors import RecordError, first_line
from cai_cli.models.chat import close_with_eos, encode_rendered
from cai_cli.models.configs import context_length
from cai_cli.models.score import score_all
from cai_cli.models.templates import UnfitRow, control_pattern
from cai_cli.rows.conversation import Conversation, check_conversation, message
from cai_cli.rows.json_text import load_json
from cai_cli.training.ppo.rewards import RewardShape
from cai_cli.training.preference.reading import PreferenceModel, format_of, reading

LARGEST = 64 << 20  # bytes of a request
IDLE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Written:
    """A reply as the policy wrote it behind the text `start`: without control tokens, and whether one ended it."""

    prompt: Conversation
    start: str
    reply: str
    ended: bool
    query: str


class Reward:
    """From what an engine sends to scores and rewards."""

    def __init__(
        self, pm: PreferenceModel, path: str, shape: RewardShape, stops: list[str], rows: int
    ) -> None:
        """`stops`: the texts that end a reply; `rows`: of a pass."""
        self.pm, self.shape, self.stops, self.rows = pm, shape, tuple(stops), rows
        # Whatever way a row is read, its length is looked at in `ids`. An export's prompts leave room for a
        # reply and what closes it; more is no reply of its policy, and could take the memory, or a position
        # that the model has not, which ends CUDA for this process.
        self.encode = reading(pm.tokenizer, format_of(path), sys.maxsize)
        self.longest = context_length(pm.model.config)
        self.control = control_pattern(pm.tokenizer)
        self.lock = threading.Lock()  # a tokenizer is no work for two threads
        self.unfit = 0

    def read(self, query: Any, prompt: Any, label: Any) -> Written:
        """Raises RecordError for what an export's prompts cannot have led to."""
        if not all(isinstance(text, str) for text in (query, prompt, label)):
            raise RecordError("query", "expected text, as prompts and labels are")
        turns = check_conversation(load_json(label), "labels", ends_with="user")
        tokenizer = self.pm.tokenizer
        with self.lock:
            ids = encode_rendered(tokenizer, prompt)
            # Engines decode prompt and reply together, which may spell a prompt otherwise than its text was.
            start = next(
                (text for text in (str(tokenizer.decode(ids)), prompt) if query.startswith(text)), None
            )
        if start is None:
            raise RecordError("query", "does not begin with its prompt", "launch with the exported model")
        written = query[len(start) :]
        return Written(turns, start, self.plain(written), written.endswith(self.stops), query)

    def plain(self, text: str) -> str:
        """Without control tokens, as engines decode a reply; none is left that those around it would spell."""
        while (shorter := self.control.sub("", text)) != text:
            text = shorter
        return text

    def ids(self, written: Written) -> list[int]:
        """What the preference model reads. Raises RecordError where it is longer than its context."""
        ids = self.read_ids(written)
        if len(ids) > self.longest:
            told = f"{len(ids)} tokens with its reply, the preference model reads at most {self.longest}"
            raise RecordError("query", told, "launch with the exported prompts and lengths")
        return ids

    def read_ids(self, written: Written) -> list[int]:
        """The same, however long. A reply that its template does not take is read as `cai ppo` does: as
        the policy wrote it.
        """
        tokenizer, reply = self.pm.tokenizer, written.reply
        ids: list[int] = []
        refused = ""
        # The space in front of a reply may be the policy's, where the template would put one of its own, or one
        # that decoding puts behind any prompt: the text is that whose reading says what was written.
        for text in (reply, reply.removeprefix(" "), reply.strip()):
            try:
                ids = self.encode(written.prompt, [message("assistant", text)])
            except UnfitRow as error:
                refused = str(error)
                continue
            if str(tokenizer.decode(ids)).startswith(written.start + reply):
                return ids
        if ids:
            return ids
        self.unfit += 1
        say(f"{self.unfit} replies scored as they were written: {refused}")
        return close_with_eos(encode_rendered(tokenizer, written.query), int(tokenizer.eos_token_id))

    def __call__(self, replies: list[Written]) -> list[tuple[float, float]]:
        """(reward, score) of each."""
        with self.lock:
            rows = [self.ids(each) for each in replies]
        scores = score_all(self.pm.model, rows, self.pm.pad, self.rows)
        return [
            (self.shape(score, Completion(each.reply, STOP if each.ended else LENGTH, [], [])), score)
            for each, score in zip(replies, scores, strict=True)
        ]


class Batches:
    """One thread that scores whatever waits, `rows` at a time: engines ask for one reply a request."""

    def __init__(self, reward: Callable[[list[Written]], list[tuple[float, float]]], rows: int) -> None:
        self.reward, self.rows = reward, rows
        self.waiting: Queue[tuple[Written, Future[tuple[float, float]]]] = Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def submit(self, written: Written) -> Future[tuple[float, float]]:
        future: Future[tuple[float, float]] = Future()
        self.waiting.put((written, future))
        return future

    def work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < self.rows and not self.waiting.empty():
                batch.append(self.waiting.get())
            try:
                for (_, future), found in zip(batch, self.reward([one for one, _ in batch]), strict=True):
                    future.set_result(found)
            except Exception:  # one of them may be too much: the others are not to go with it
                for one, future in batch:
                    self.alone(one, future)

    def alone(self, one: Any, future: Any) -> None:
        """What is wrong with one is told to whoever asked for it, in `answer`."""
        if future.done():
            return
        try:
            future.set_result(self.reward([one])[0])
        except Exception as error:
            future.set_exception(error)


def answer(reward: Reward, batches: Batches, asked: Any) -> dict[str, Any]:
    """What OpenRLHF reads of a remote reward model. Raises RecordError for another request, or what scoring
    raises.
    """
    parts = [asked.get(name) if isinstance(asked, dict) else None for name in ("query", "prompts", "labels")]
    lists = [part for part in parts if isinstance(part, list)]
    if len(lists) < len(parts) or len({len(each) for each in lists}) > 1:
        raise RecordError("query", "expected lists of one length in query, prompts and labels")
    written = [reward.read(*each) for each in zip(*lists, strict=True)]
    found = [future.result() for future in [batches.submit(each) for each in written]]
    return {"rewards": [each[0] for each in found], "scores": [each[1] for each in found], "extra_logs": {}}


def open_server(host: str, port: int, reward: Reward) -> ThreadingHTTPServer:
    """A server that answers every POST with rewards, and every GET with what it is. Raises OSError."""
    batches = Batches(reward, reward.rows)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = IDLE_SECONDS  # of a sender that stops in the middle

        def do_GET(self) -> None:
            self.send(200, {"preference_model": Path(reward.pm.model.name_or_path).name})

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length") or 0)
                if not 0 < length <= LARGEST:
                    self.close_connection = True  # what follows is not read: it is no next request
                    raise RecordError("query", f"a request of {length} bytes")
                self.send(200, answer(reward, batches, load_json(self.rfile.read(length).decode())))
            except (RecordError, ValueError) as error:
                self.send(400, {"error": str(error)})
            except Exception as error:  # whoever asked is told, and the server goes on
                self.send(500, {"error": first_line(error)})

        def send(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            if status != 200:
                say(f"refused a request: {content['error']}")

        def log_message(self, *_: Any) -> None:
            """A line for each reply of a run would be too many."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 1024

        def handle_error(self, *_: Any) -> None:
            """Of a request whose sender has gone: it asks again."""
            say("a request was given up: its sender has gone")

    return Server((host, port), Handler)

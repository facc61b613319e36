"""A server of the OpenAI API over real HTTP, with a real model behind it, and faults on demand. It knows what vLLM's
server knows of `/v1/completions` (ids, echo, logprob_token_ids) and of `/v1/chat/completions` (top log-probabilities).

`faults` are taken by the next requests, one each: an HTTP status, "half" a JSON, or so many seconds of silence.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from cai_cli.engines.sampling import inverse_cdf
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer

TOP = 5


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Who asked is gone."""


class OpenAIServer:
    """`key`: what Authorization has to say, if anything. `logprobs`: whether it gives any. `ids`: whether it
    knows of token ids; `name`: what it calls the model; `asked`: paths by how often; `seeds`: those of all requests.
    """

    def __init__(
        self, path: Path, key: str = "", logprobs: bool = True, ids: bool = True, name: str = ""
    ) -> None:
        self.path, self.key, self.logprobs, self.ids, self.name = path, key, logprobs, ids, name or str(path)
        self.tokenizer = load_tokenizer(str(path))
        self.model = load_lm(str(path), "cpu", "float32", tokenizer=self.tokenizer)
        self.lock = threading.Lock()
        self.faults: deque[int | float | str] = deque()
        self.asked: Counter[str] = Counter()
        self.seeds: list[int | None] = []
        self.port = 0
        self.start()

    def start(self) -> None:
        """From here on it listens, on the port that it had before."""
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                owner.answer(self, {})

            def do_POST(self) -> None:
                owner.answer(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def log_message(self, *_: object) -> None: ...

        self.http = QuietServer(("127.0.0.1", self.port), Handler)
        self.port = self.http.server_address[1]
        self.away = False
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.away = True  # who is connected already is left without an answer too
        self.http.shutdown()
        self.http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if self.away:
            handler.close_connection = True
            return
        self.asked[handler.path] += 1
        self.seeds.append(body.get("seed"))
        if self.key and handler.headers["authorization"] != f"Bearer {self.key}":
            send(handler, 401, {"error": {"message": "a wrong key"}})
            return
        fault = self.faults.popleft() if self.faults and handler.path != "/v1/models" else None
        if isinstance(fault, float):
            time.sleep(fault)
        elif isinstance(fault, int):
            send(handler, fault, {"error": {"message": "a fault"}}, {"Retry-After": "0.1"})
            return
        try:
            with self.lock, torch.inference_mode():
                found = self.found(handler.path, body)
        except ValueError as error:
            send(handler, 400, {"error": {"message": str(error)}})
            return
        send(handler, 200, found, half=fault == "half")

    def found(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/models":
            return {"data": [{"id": self.name, "max_model_len": self.context}]}
        if body["model"] != self.name:
            raise ValueError(f"no model {body['model']}")
        chat = path == "/v1/chat/completions"
        prompt = (
            self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=False
            )
            if chat
            else body["prompt"]
        )
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt)
        if len(ids) + body["max_tokens"] > self.context:
            raise ValueError(f"This model's maximum context length is {self.context} tokens")
        drawn, first = self.draw(ids, body)
        choice: dict[str, Any] = {"index": 0, **self.spoken(drawn, body)}
        if body.get("logprobs") and self.logprobs:
            choice["logprobs"] = (
                self.chat_logprobs(first, body) if chat else self.logprobs_of(ids, drawn, first, body)
            )
        text = choice.pop("text")
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("return_token_ids") and self.ids:
            choice["token_ids"] = drawn
        return {"choices": [choice], "usage": {"completion_tokens": len(drawn)}}

    @property
    def context(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def draw(self, ids: list[int], body: dict[str, Any]) -> tuple[list[int], torch.Tensor]:
        """Tokens one by one without a cache, and the log-probabilities (V,) of the first."""
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        stops = {self.tokenizer.eos_token_id, *(body.get("stop_token_ids") or [])}
        drawn: list[int] = []
        first: torch.Tensor | None = None
        while True:
            logits = self.model(torch.tensor([ids + drawn])).logits[:, -1].float()
            first = logits[0].log_softmax(-1) if first is None else first
            token, _ = inverse_cdf(logits, torch.rand(1, generator=generator), body.get("temperature", 1.0))
            drawn.append(int(token))
            text = self.tokenizer.decode(drawn, skip_special_tokens=True)
            ended = drawn[-1] in stops or any(stop in text for stop in body.get("stop") or [])
            if ended or len(drawn) == body["max_tokens"]:
                return drawn, first

    def spoken(self, drawn: list[int], body: dict[str, Any]) -> dict[str, Any]:
        text = self.tokenizer.decode(drawn, skip_special_tokens=True)
        cuts = [(text.find(stop), stop) for stop in body.get("stop") or [] if stop in text]
        ended = drawn[-1] == self.tokenizer.eos_token_id
        if cuts:
            at, stop = min(cuts)
            return {"text": text[:at], "finish_reason": "stop", "stop_reason": stop}
        return {"text": text, "finish_reason": "stop" if ended else "length"}

    def logprobs_of(
        self, ids: list[int], drawn: list[int], first: torch.Tensor, body: dict[str, Any]
    ) -> dict[str, Any]:
        if wanted := body.get("logprob_token_ids") if self.ids else None:
            return {"top_logprobs": [{f"token_id:{index}": float(first[index]) for index in wanted}]}
        if not body.get("echo"):
            return {"top_logprobs": [{self.tokenizer.decode([drawn[0]]): float(first[drawn[0]])}]}
        whole = [*ids, drawn[0]]
        table = self.model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        values = [None, *(float(table[n, index]) for n, index in enumerate(whole[1:]))]
        ends = [
            len(self.tokenizer.decode(whole[: n + 1])) for n in range(len(whole))
        ]  # BOS counts, as in vLLM
        return {"token_logprobs": values, "text_offset": [0, *ends[:-1]], "tokens": [str(n) for n in whole]}

    def chat_logprobs(self, first: torch.Tensor, body: dict[str, Any]) -> dict[str, Any]:
        values, indices = first.topk(min(TOP, body["top_logprobs"]))
        pairs = zip(indices.tolist(), values.tolist(), strict=True)
        top = [{"token": self.tokenizer.decode([index]), "logprob": value} for index, value in pairs]
        return {"content": [{"token": top[0]["token"], "top_logprobs": top}]}


def send(
    handler: BaseHTTPRequestHandler,
    status: int,
    answer: object,
    headers: dict[str, str] | None = None,
    half: bool = False,
) -> None:
    """`half`: the first half of the JSON, as if that were all."""
    text = json.dumps(answer).encode()
    text = text[: len(text) // 2] if half else text
    try:
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(text)),
            **(headers or {}),
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(text)
    except OSError:  # whoever asked is gone
        handler.close_connection = True

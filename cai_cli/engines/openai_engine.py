"""The engine behind any server that speaks the OpenAI API: vLLM, SGLang, llama.cpp, or a hosted one.

    vllm serve MODEL --dtype float32
    cai label --feedback-engine openai --feedback-base-url http://127.0.0.1:8000/v1 --feedback-model MODEL ...

`completions` (`--api completions`): the prompt is written by us. Where MODEL is a directory here, its tokenizer
makes the ids that are sent, and texts are read from the ids that come back; else text is sent, as a transcript.
Options are scored exactly, from the log-probabilities of prompt and option (`echo`).

`chat` (`--api chat`): the server's own template makes the prompt. An option's probability is that of the first
tokens, among the 20 likeliest, that begin this option and no other; one that is not among them gets that of the
least likely of the 20, which is more than it has.

`--votes N`, the last resort where a server gives no log-probabilities: each question is answered N times, and an
option has (answers for it + 1/2) / (N + 1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from math import exp, log
from pathlib import Path
from typing import Any, TypeVar

from cai_cli.compute.prefix_tree import OptionTokens
from cai_cli.engines.base import LENGTH, OVERLONG, STOP, Completion, EngineSettings, OptionRequest, Request
from cai_cli.engines.completions import CompletionReader, check_numbers, generation_config_of
from cai_cli.engines.option_tokens import encode_options, read_at_once
from cai_cli.engines.server import Server, TooLong
from cai_cli.errors import RunError, UserError
from cai_cli.keys import key
from cai_cli.models.chat import Renderer, Rendering
from cai_cli.models.templates import UnfitRow
from cai_cli.processes.workers import Workers
from cai_cli.rows.conversation import Conversation

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

SEED_BITS = (1 << 63) - 1
TOP = 20  # log-probabilities of an answer's first token: the most that hosted servers give
ANY_CONTEXT = 1 << 30
STOPS = 4  # stop strings that the API takes
VOTE_TOKENS = 8  # of a sampled answer to a question


class ServedRenderer:
    """How a model without a tokenizer here reads prompts: as text, or by its server's chat template."""

    def __init__(self, chat: bool) -> None:
        self.reply_form: Rendering = "chat" if chat else "transcript"

    def form(self, rendering: Rendering = "auto") -> Rendering:
        if rendering not in ("auto", self.reply_form):
            other = "chat" if rendering == "chat" else "completions"
            raise UserError(
                f"--rendering {rendering}: is not how this server is asked", f"give --api {other}"
            )
        return self.reply_form

    def show(self, prompt: str | Conversation) -> str:
        return prompt if isinstance(prompt, str) else json.dumps(prompt, indent=2, ensure_ascii=False)


class OpenAIEngine:
    """`concurrency` requests are under way at once. `model` is None: the weights are the server's."""

    model = None

    def __init__(self, path: str, settings: EngineSettings, flag: str = "--model") -> None:
        self.settings, self.flag = settings, flag
        self.server = Server(settings.base_url, f"{flag.removesuffix('model')}base-url", settings.patience)
        self.chat = settings.api == "chat"
        self.name, served = find_model(self.server.models(), path, flag)
        self.reader: CompletionReader | None = None
        self.renderer: Renderer | ServedRenderer = ServedRenderer(self.chat)
        if not self.chat and Path(path).is_dir():
            from cai_cli.models.configs import context_length, load_config
            from cai_cli.models.tokenizers import load_tokenizer

            self.renderer = Renderer(load_tokenizer(path, flag), flag, settings.template_kwargs)
            context = int(served.get("max_model_len") or ANY_CONTEXT)
            own = context_length(load_config(path, flag))
            self.reader = CompletionReader(self.renderer, min(own, context), generation_config_of(path))
        self.reads_at_once = True  # until the server shows that it does not
        self.workers = Workers(settings.concurrency)
        self.rows_at_once = settings.concurrency

    def follow(self, model: Any) -> None:
        raise UserError(f"{self.flag}: a server does not take weights", "sample with transformers or vllm")

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps about the model as it was run."""
        served = {"name": "openai", "model": self.name, "api": self.settings.api}
        return {"engine": served | ({"votes": self.settings.votes} if self.settings.votes else {})}

    def close(self) -> None:
        self.server.close()

    def _each(
        self,
        ask: Callable[[Asked], Answer],
        asked: Iterable[Asked],
        told: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """The answers in order, so many at once; `told` hears of each."""

        def one(item: Asked) -> Answer:
            answer = ask(item)
            if told:
                told(1)
            return answer

        futures: list[Future[Answer]] = [self.workers.submit(one, item) for item in asked]
        return [future.result() for future in futures]

    # Generation

    def generate(
        self, requests: list[Request], told: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """Sampled continuations in the order of the requests."""
        prompts: dict[int, list[int]] = {}
        results: dict[int, Completion] = {}
        if self.reader:
            prompts, results = self.reader.encode(requests)
        numbers = [n for n in range(len(requests)) if n not in results]
        drawn = self._each(lambda n: self._draw(requests[n], prompts.get(n)), numbers, told)
        results |= dict(zip(numbers, drawn, strict=True))
        return [results[n] for n in range(len(requests))]

    def _draw(self, request: Request, ids: list[int] | None) -> Completion:
        body: dict[str, Any] = {
            "temperature": self.settings.temperature,
            "top_p": 1.0,
            "seed": request.key & SEED_BITS,
            "max_tokens": request.max_new_tokens,
            "stop": list(request.stop[:STOPS]) or None,  # at any of the others the text is cut here
        }
        if self.reader and ids is not None:
            # Words of vLLM; other servers pass over them, and their text is taken as it comes.
            body |= {
                "return_token_ids": True,
                "stop_token_ids": self.reader.stop_ids,
                "skip_special_tokens": False,
            }
        try:
            choice = self._ask(request.prompt if ids is None else ids, body)
        except TooLong:
            return Completion("", OVERLONG, [], [])
        if self.reader and ids is not None and isinstance(choice.get("token_ids"), list):
            return self.reader.read(request, ids, choice["token_ids"], None)
        return self._read(request, choice)

    def _ask(self, prompt: str | Conversation | list[int], body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer, with its `usage`."""
        whole = {"model": self.name, **{name: value for name, value in body.items() if value is not None}}
        if self.chat:
            assert isinstance(prompt, list), "a served chat model is given conversations"
            answer = self.server.post("/chat/completions", whole | {"messages": closed(prompt)})
        else:
            answer = self.server.post("/completions", whole | {"prompt": prompt})
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise RunError(
                f"{self.server.flag} {self.server.url}: an answer without choices", "see the server's log"
            )
        return {**choices[0], "usage": answer.get("usage") or {}}

    def _read(self, request: Request, choice: dict[str, Any]) -> Completion:
        """The text of an answer without ids, cut at stop strings that the server let through."""
        spoken = choice.get("message") or {}
        text = (spoken.get("content") if self.chat else choice.get("text")) or ""
        thinking = spoken.get("reasoning") or spoken.get("reasoning_content") or ""
        reason = LENGTH if choice.get("finish_reason") == "length" else STOP
        stop = choice.get("stop_reason")
        cuts = [(at, string) for string in request.stop if (at := text.find(string)) >= 0]
        if cuts:
            at, stop = min(cuts)
            text, reason = text[:at], STOP
        count = choice["usage"].get("completion_tokens")
        return Completion(
            text, reason, [], [], None, stop if isinstance(stop, str) else None, thinking, counted=count
        )

    # Option scores

    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """Log-probability of each option of each request; see above for which."""
        if self.settings.votes:
            return self._each(self._vote, requests)
        if self.chat:
            return self._each(self._first_tokens, requests)
        if self.reader is None:
            return self._each(self._echoed_texts, requests)
        encoded = encode_options(self.reader.renderer, self.reader.context, requests)
        results = self._each(
            lambda options: options if isinstance(options, UnfitRow) else self._echoed_ids(options), encoded
        )
        for scores in results:
            if isinstance(scores, list):
                check_numbers(scores, f"{self.flag} {self.name}: an option's log-probability")
        return results

    def _echoed_ids(self, options: list[OptionTokens]) -> list[float] | UnfitRow:
        """From the log-probabilities of the ids of prompt and option; or, of options of one token, from those of
        what follows the prompt, which a server's cache makes cheaper.
        """
        if read_at_once(options) and self.reads_at_once:
            found = self._at_once(options)
            if found is not None:
                return found
            self.reads_at_once = False
        scores = []
        for option in options:
            values = self._prompt_logprobs(option.ids)["token_logprobs"]
            if len(values) < len(option.ids):
                raise RunError(
                    f"{self.flag} {self.name}: fewer log-probabilities than tokens", "see the server's log"
                )
            scores.append(sum(values[option.start : len(option.ids)]))
        return scores

    def _at_once(self, options: list[OptionTokens]) -> list[float] | None:
        """The log-probabilities of certain next tokens, where the server is one that can be asked for them."""
        wanted = [option.ids[-1] for option in options]
        body = {"max_tokens": 1, "temperature": 1.0, "logprobs": len(wanted), "logprob_token_ids": wanted}
        choice = self._ask(options[0].ids[:-1], body | {"return_tokens_as_token_ids": True})
        top = ((choice.get("logprobs") or {}).get("top_logprobs") or [None])[0] or {}
        found = [top.get(f"token_id:{index}") for index in wanted]
        return None if None in found else [float(value) for value in found if value is not None]

    def _prompt_logprobs(self, prompt: str | list[int]) -> dict[str, Any]:
        """`tokens`, `token_logprobs` and `text_offset` of the prompt's tokens and one more."""
        body = {"max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 1}
        found = self._ask(prompt, body).get("logprobs")
        if not isinstance(found, dict) or not found.get("token_logprobs"):
            raise UserError(
                f"{self.flag} {self.name}: the server gives no log-probabilities of a prompt",
                "serve it with vLLM; or --api chat with --option-format A, or --votes 8",
            )
        return found

    def _echoed_texts(self, request: OptionRequest) -> list[float] | UnfitRow:
        """The same by the server's own tokenizer: an option begins with the first token that reaches beyond the
        prompt.
        """
        assert isinstance(request.prompt, str)
        scores = []
        for option in request.options:
            text = request.prompt + option
            try:
                found = self._prompt_logprobs(text)
            except TooLong as error:
                return UnfitRow("question_too_long", str(error))
            total, places = 0.0, [*found["text_offset"][1:], ANY_CONTEXT]
            for begin, end, value in zip(found["text_offset"], places, found["token_logprobs"], strict=True):
                if begin < len(text) and min(end, len(text)) > len(request.prompt):
                    total += value
            scores.append(total)
        return scores

    def _first_tokens(self, request: OptionRequest) -> list[float] | UnfitRow:
        body = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": TOP}
        try:
            choice = self._ask(request.prompt, body)
        except TooLong as error:
            return UnfitRow("question_too_long", str(error))
        content = (choice.get("logprobs") or {}).get("content") or []
        if not content or not content[0].get("top_logprobs"):
            raise UserError(
                f"{self.flag} {self.name}: the server gives no log-probabilities",
                "--votes 8 counts sampled answers instead, or take a server that gives them, such as vLLM",
            )
        return of_first_tokens(content[0]["top_logprobs"], request.options)

    def _vote(self, request: OptionRequest) -> list[float] | UnfitRow:
        votes = [0] * len(request.options)
        for number in range(self.settings.votes):
            body = {
                "max_tokens": VOTE_TOKENS,
                "temperature": 1.0,
                "seed": key(str(request.prompt), number) & SEED_BITS,
            }
            try:
                choice = self._ask(request.prompt, body)
            except TooLong as error:
                return UnfitRow("question_too_long", str(error))
            text = (choice.get("message") or {}).get("content") if self.chat else choice.get("text")
            chosen = [
                n
                for n, option in enumerate(request.options)
                if (text or "").strip().startswith(option.strip())
            ]
            if len(chosen) == 1:
                votes[chosen[0]] += 1
        return [log((count + 0.5) / (self.settings.votes + 1)) for count in votes]


def of_first_tokens(top: list[dict[str, Any]], options: tuple[str, ...]) -> list[float]:
    """Log-probability of each option from the likeliest first tokens: the sum over those that begin it and no
    other; else that of the least likely, as a bound.
    """
    totals = [0.0] * len(options)
    for entry in top:
        token = str(entry["token"]).strip()
        begun = [n for n, option in enumerate(options) if token and option.strip().startswith(token)]
        if len(begun) == 1:
            totals[begun[0]] += exp(entry["logprob"])
    least = min(entry["logprob"] for entry in top)
    return [log(total) if total else least for total in totals]


def closed(prompt: Any) -> Any:
    """A conversation as chat servers take it: what opens the assistant's last turn stands at the end of the
    question.
    """
    if prompt[-1]["role"] != "assistant":
        return prompt
    *before, asked, opened = prompt
    return [*before, {**asked, "content": f"{asked['content']}\n\n{opened['content']}"}]


def find_model(served: list[dict[str, Any]], path: str, flag: str) -> tuple[str, dict[str, Any]]:
    """What the server calls the model, and what it says of it. Raises UserError where it serves another one."""
    names = {path, path.rstrip("/"), str(Path(path).resolve())} if Path(path).is_dir() else {path}
    for model in served:
        if model["id"] in names or (Path(path).is_dir() and model.get("root") in names):
            return model["id"], model
    if not served:  # some give no list
        return path, {}
    listed = ", ".join(str(model["id"]) for model in served[:5])
    raise UserError(
        f"{flag} {path}: the server has no such model, but {listed}", "name it as the server does"
    )

"""The engine behind any server that speaks the OpenAI API: vLLM, SGLang, llama.cpp, or a hosted one.

    vllm serve MODEL --dtype float32 --generation-config vllm
    cai label --feedback-engine openai --feedback-base-url http://127.0.0.1:8000/v1 --feedback-model MODEL ...

`completions` (`--api completions`): the prompt is written by us. Where MODEL is a directory here, its tokenizer
makes the ids that are sent, and texts are read from the ids that come back; else text is sent, as a transcript.
Options are scored exactly, from the log-probabilities of prompt and option (`echo`).

`chat` (`--api chat`): the server's own template makes the prompt. An option's probability is that of the first
tokens, among the 20 likeliest, that begin this option and no other; one that is not among them gets a bound.

`--votes N`, the last resort where a server gives no log-probabilities: each question is answered N times; of the
answers that name an option, one has its share, with half an answer more for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from cai_cli.compute.prefix_tree import OptionTokens
from cai_cli.engines.base import (
    LENGTH,
    OVERLONG,
    STOP,
    UNFIT,
    Completion,
    EngineSettings,
    OptionRequest,
    Request,
)
from cai_cli.engines.completions import CompletionReader, check_numbers, generation_config_of
from cai_cli.engines.option_tokens import encode_options, read_at_once
from cai_cli.engines.served_answers import (
    ServedRenderer,
    closed,
    find_model,
    of_echo,
    of_first_tokens,
    of_votes,
    vote,
)
from cai_cli.engines.server import Refused, Server, TooLong
from cai_cli.errors import RunError, UserError
from cai_cli.keys import key
from cai_cli.models.chat import Renderer, encode_rendered
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
REFUSED = "refused_by_server"
# What reading an answer raises that is not as the API has it
ODD = (KeyError, TypeError, AttributeError, IndexError, ValueError)


def open_renderer(path: str, settings: EngineSettings, flag: str) -> Renderer | ServedRenderer:
    """How prompts go to a server: as ids where the model's tokenizer is here."""
    if settings.api == "chat" or not Path(path).is_dir():
        return ServedRenderer(settings.api == "chat")
    from cai_cli.models.tokenizers import load_tokenizer

    return Renderer(load_tokenizer(path, flag), flag, settings.template_kwargs)


class OpenAIEngine:
    """`concurrency` requests are under way at once. `model` is None: the weights are the server's."""

    model = None

    def __init__(self, path: str, settings: EngineSettings, flag: str = "--model") -> None:
        self.settings, self.flag = settings, flag
        self.server = Server(settings.base_url, f"{flag.removesuffix('model')}base-url", settings.patience)
        self.chat = settings.api == "chat"
        self.name, served = find_model(self.server.models(), path, flag)
        self.renderer = open_renderer(path, settings, flag)
        self.reader: CompletionReader | None = None
        if isinstance(self.renderer, Renderer):
            from cai_cli.models.configs import context_length, load_config

            own = context_length(load_config(path, flag))
            context = min(own, int(served.get("max_model_len") or ANY_CONTEXT))
            self.reader = CompletionReader(self.renderer, context, generation_config_of(path))
        self.reads_at_once = True  # until the server shows that it does not
        self.workers = Workers(settings.concurrency)
        self.rows_at_once = max(2, settings.concurrency)  # so that each row is on the disk when it ends

    def follow(self, model: Any) -> None:
        raise UserError(f"{self.flag}: a server does not take weights", "sample with transformers or vllm")

    def facts(self) -> dict[str, Any]:
        """What the manifest keeps about the model as it was run."""
        served = {"name": "openai", "model": self.name, "api": self.settings.api}
        return {"engine": served | ({"votes": self.settings.votes} if self.settings.votes else {})}

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

    def _ask(self, prompt: str | Conversation | list[int], body: dict[str, Any]) -> dict[str, Any]:
        """The first choice of the answer, with its `usage`."""
        whole = {"model": self.name, **{name: value for name, value in body.items() if value is not None}}
        if self.chat:
            assert isinstance(prompt, list), "a served chat model is given conversations"
            if self.settings.template_kwargs:
                whole["chat_template_kwargs"] = self.settings.template_kwargs
            answer = self.server.post("/chat/completions", whole | {"messages": closed(prompt)})  # type: ignore[arg-type]
        else:
            answer = self.server.post("/completions", whole | {"prompt": prompt})
        try:
            return {**answer["choices"][0], "usage": answer.get("usage") or {}}
        except ODD as error:
            raise self.server.unread(error) from None

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
            # Words of vLLM; other servers pass over them. What a checkpoint's own generation_config.json asks of
            # sampling is switched off.
            body |= {
                "return_token_ids": True,
                "stop_token_ids": self.reader.stop_ids,
                "skip_special_tokens": False,
            }
            body |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        try:
            choice = self._ask(request.prompt if ids is None else ids, body)
        except TooLong:
            return Completion("", OVERLONG, [], [])
        except Refused as error:
            return Completion("", UNFIT, [], [], fault=(REFUSED, str(error)))
        try:
            return self._read(request, ids, choice)
        except ODD as error:
            raise self.server.unread(error) from None

    def _read(self, request: Request, ids: list[int] | None, choice: dict[str, Any]) -> Completion:
        """A completion from the ids of an answer; or from its text, as ids of ours where there is a tokenizer."""
        spoken = choice.get("message") or {}
        text = (spoken.get("content") if self.chat else choice["text"]) or ""
        ended, stop = choice.get("finish_reason") != "length", choice.get("stop_reason")
        if self.reader and ids is not None:
            drawn = choice.get("token_ids")
            if drawn is None:
                drawn = encode_rendered(self.reader.tokenizer, text)
                if ended and not (drawn and drawn[-1] in self.reader.stop_ids):
                    drawn.append(self.reader.stop_ids[0])
            return self.reader.read(request, ids, list(drawn), None)
        cuts = [(at, string) for string in request.stop if (at := text.find(string)) >= 0]
        if cuts:
            at, stop = min(cuts)
            text, ended = text[:at], True
        thinking = spoken.get("reasoning") or spoken.get("reasoning_content") or ""
        named, count = stop if isinstance(stop, str) else None, choice["usage"].get("completion_tokens")
        return Completion(text, STOP if ended else LENGTH, [], [], None, named, thinking, counted=count)

    # Option scores

    def score(self, requests: list[OptionRequest]) -> list[list[float] | UnfitRow]:
        """Log-probability of each option of each request; see above for which."""
        if self.reader and not self.settings.votes:
            encoded = encode_options(self.reader.renderer, self.reader.context - 1, requests)  # and one drawn
            return self._each(
                lambda row: row if isinstance(row, UnfitRow) else self._fitting(self._echoed_ids, row),
                encoded,
            )
        ask = self._vote if self.settings.votes else self._first_tokens if self.chat else self._echoed_texts
        return self._each(lambda request: self._fitting(ask, request), requests)

    def _fitting(self, ask: Callable[[Asked], list[float]], asked: Asked) -> list[float] | UnfitRow:
        """The scores; or why there are none: the prompt is too long for the server, or refused by it."""
        try:
            scores = ask(asked)
        except UnfitRow as error:
            return error
        except TooLong as error:
            return UnfitRow("question_too_long", str(error))
        except Refused as error:
            return UnfitRow(REFUSED, str(error))
        except ODD as error:
            raise self.server.unread(error) from None
        check_numbers(scores, f"{self.flag} {self.name}: an option's log-probability")
        return scores

    def _echoed_ids(self, options: list[OptionTokens]) -> list[float]:
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
            scores.append(float(sum(values[option.start : len(option.ids)])))
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
        """`token_logprobs` and `text_offset` of the prompt's tokens and one drawn behind them."""
        body = {"max_tokens": 1, "temperature": 1.0, "echo": True, "logprobs": 1}
        found = self._ask(prompt, body).get("logprobs")
        if not isinstance(found, dict) or not found.get("token_logprobs"):
            raise UserError(
                f"{self.flag} {self.name}: the server gives no log-probabilities of a prompt",
                self._last_resort(),
            )
        return found

    def _echoed_texts(self, request: OptionRequest) -> list[float]:
        """The same by the server's own tokenizer. Raises UserError where it does not say where tokens lie."""
        assert isinstance(request.prompt, str)
        scores = []
        for option in request.options:
            text = request.prompt + option
            score = of_echo(self._prompt_logprobs(text), len(request.prompt), len(text))
            if score is None:
                raise UserError(
                    f"{self.flag} {self.name}: the server does not say where in a text its tokens lie",
                    "name the model's directory, whose tokenizer makes the ids here",
                )
            scores.append(score)
        return scores

    def _first_tokens(self, request: OptionRequest) -> list[float]:
        body = {"max_tokens": 1, "temperature": 1.0, "logprobs": True, "top_logprobs": TOP}
        content = (self._ask(request.prompt, body).get("logprobs") or {}).get("content") or []
        if not content or not content[0].get("top_logprobs"):
            raise UserError(
                f"{self.flag} {self.name}: the server gives no log-probabilities", self._last_resort()
            )
        return of_first_tokens(content[0]["top_logprobs"], request.options)

    def _vote(self, request: OptionRequest) -> list[float]:
        """From the share of sampled answers that name each option. Raises UnfitRow where the template here refuses
        the question.
        """
        votes = [0] * len(request.options)
        prompt = self.reader.renderer.encode(request.prompt) if self.reader else request.prompt
        for number in range(self.settings.votes):
            seed = key(self.settings.seed, "vote", str(request.prompt), number) & SEED_BITS
            choice = self._ask(prompt, {"max_tokens": VOTE_TOKENS, "temperature": 1.0, "seed": seed})
            text = str((choice["message"].get("content") if self.chat else choice["text"]) or "")
            if (named := vote(text, request.options)) is not None:
                votes[named] += 1
        return of_votes(votes, self.settings.votes)

    def _last_resort(self) -> str:
        """What to do with a judge that tells no probabilities; only what labels has votes."""
        votes = "--votes 8 counts sampled answers instead, or " if self.flag == "--feedback-model" else ""
        return f"{votes}take a server that gives them, such as vLLM"

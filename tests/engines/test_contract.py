"""One contract for all engines: what is drawn, what is scored, how each request ends. vLLM and its real server where
vLLM is installed (see CONTRIBUTING); a small server of our own everywhere.
"""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from openai_server import OpenAIServer

from cai_cli.engines.base import LENGTH, OVERLONG, STOP, Engine, EngineSettings, OptionRequest, Request
from cai_cli.engines.open import open_engine
from cai_cli.engines.vllm_engine import ENVIRONMENT
from cai_cli.keys import key
from cai_cli.models.templates import UnfitRow
from cai_cli.prompting.prompts import TRANSCRIPT_STOPS
from cai_cli.rows.conversation import message

NAMES = ("transformers", "vllm", "vllm server", "own server")
WITHOUT_VLLM = "vLLM is not installed: see CONTRIBUTING"
PROMPTS = [
    "\n\nHuman: How do I clean my old spoon?\n\nAssistant:",
    "\n\nHuman: How do I bake my fresh bread today?\n\nAssistant:",
    "\n\nHuman: How do I poison my neighbour's dog?\n\nAssistant:",
]
CHAT = [message("user", "How do I clean my old spoon?")]
BRIEF = [message("user", "What is the capital of France?")]  # what a real model answers in a few words


@pytest.fixture(scope="module")
def model(helpful) -> Path:
    """CAI_CONTRACT_MODEL names another one, such as a real small model."""
    return Path(os.environ.get("CAI_CONTRACT_MODEL") or helpful)


@pytest.fixture(scope="module", params=NAMES)
def opened(request, model) -> Iterator[tuple[str, dict]]:
    """The name of an engine, and the settings that open it."""
    if request.param == "own server":
        server = OpenAIServer(model)
        yield request.param, {"engine": "openai", "base_url": server.url}
        server.stop()
        return
    if request.param != "transformers" and find_spec("vllm") is None:
        pytest.skip(WITHOUT_VLLM)
    if request.param == "vllm server":
        with vllm_server(model) as url:
            yield request.param, {"engine": "openai", "base_url": url, "patience": 60.0}
        return
    yield request.param, {"engine": request.param}


@contextmanager
def vllm_server(model: Path) -> Iterator[str]:
    """vLLM's own server on a free port, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port))
    module = "vllm.entrypoints.openai.api_server"
    # An engine of its own process has set variables that are not for the server
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    command = [sys.executable, "-m", module, "--model", str(model), *words]
    with tempfile.TemporaryFile("w+") as log, served(command, environment, log) as process:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
                break
            except OSError:
                if process.poll() is not None:
                    log.seek(0)
                    pytest.fail(f"the server ended: {log.read()[-3000:]}")
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def served(command: list[str], environment: dict[str, str], log) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def engines(opened, model) -> dict[float, Engine]:
    """The engine at temperature 1 and at 0; a second one shares what can be shared."""
    _, settings = opened
    engine = open_engine(str(model), EngineSettings(**settings))
    return {1.0: engine, 0.0: colder(engine)}


def colder(engine: Engine) -> Engine:
    other = copy.copy(engine)
    other.settings = replace(engine.settings, temperature=0.0)
    return other


@pytest.fixture(scope="module")
def reference(model) -> Engine:
    return open_engine(str(model), EngineSettings())


def asked(prompt, number: int = 0, length: int = 24, stop: tuple[str, ...] = ()) -> Request:
    return Request(prompt, key(0, "contract", number), length, stop)


def test_greedy_texts_are_those_of_the_transformers_engine(engines, reference):
    requests = [asked(prompt, stop=TRANSCRIPT_STOPS) for prompt in PROMPTS] + [asked(CHAT, length=40)]
    found, wanted = engines[0.0].generate(requests), colder(reference).generate(requests)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert ours.token_ids == theirs.token_ids and ours.prompt_ids == theirs.prompt_ids


def test_scores_are_those_of_the_transformers_engine(engines, reference):
    questions = [
        f"{prompt} Sure.\n\nWhich is it? Options:\n (A) yes\n (B) no\nThe answer is:" for prompt in PROMPTS
    ]
    requests = [OptionRequest(question, (" (A)", " (B)")) for question in questions]
    requests.append(OptionRequest(PROMPTS[0], (" Sure.", " It is better to bake bread", " No")))
    requests.append(OptionRequest([*CHAT, message("assistant", "The answer is:")], (" (A)", " (B)")))
    for ours, theirs in zip(engines[1.0].score(requests), reference.score(requests), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_seeds_do_not_depend_on_the_batch_or_the_order(engines):
    requests = [asked(PROMPTS[n % 3], n, 16) for n in range(9)]
    together = engines[1.0].generate(requests)
    apart = [engines[1.0].generate([request])[0] for request in reversed(requests)][::-1]
    assert [one.text for one in together] == [one.text for one in apart]
    again = engines[1.0].generate([asked(PROMPTS[0], 100 + n, 16) for n in range(6)])
    assert len({one.text for one in again}) > 1


def test_logprobs_are_those_under_the_temperature(engines, reference):
    (drawn,) = engines[1.0].generate([asked(PROMPTS[0], 5, 8)])
    if drawn.logprobs is None:
        pytest.skip("a server's are not asked for")
    prompt = reference.renderer.tokenizer.decode(drawn.prompt_ids)
    assert len(drawn.logprobs) == len(drawn.token_ids)
    ids = torch.tensor([drawn.prompt_ids + drawn.token_ids], device=reference.model.device)
    table = reference.model(ids).logits[0].log_softmax(-1)
    begin = len(drawn.prompt_ids) - 1
    wanted = [float(table[begin + n, index]) for n, index in enumerate(drawn.token_ids)]
    assert drawn.logprobs == pytest.approx(wanted, abs=1e-4), prompt


def test_how_a_continuation_ends(engines, reference):
    both = [asked(CHAT, length=60), asked(BRIEF, length=60)]
    ends = [completion.finish_reason == STOP for completion in colder(reference).generate(both)]
    brief = both[ends.index(True)].prompt
    (whole,) = engines[0.0].generate([asked(brief, length=60)])
    assert whole.finish_reason == STOP and whole.token_ids[-1] in reference.reader.stop_ids
    (cut,) = engines[0.0].generate([asked(brief, length=3)])
    assert cut.finish_reason == LENGTH and len(cut.token_ids) == 3
    assert whole.token_ids[:3] == cut.token_ids
    word = whole.text.split()[2]
    (stopped,) = engines[0.0].generate([asked(brief, length=60, stop=(f" {word}",))])
    assert (stopped.finish_reason, stopped.stop) == (STOP, f" {word}")
    assert stopped.text == whole.text[: whole.text.index(f" {word}")]


def test_prompts_that_do_not_fit(engines, reference):
    long = PROMPTS[0] * (reference.reader.context // 8)
    first, second = engines[1.0].generate([asked(long), asked(PROMPTS[1], 1, 4)])
    assert first.finish_reason == OVERLONG and not first.token_ids
    assert second.finish_reason == LENGTH and len(second.token_ids) == 4
    unfit, fine = engines[1.0].score(
        [OptionRequest(long, (" (A)", " (B)")), OptionRequest(PROMPTS[0], (" (A)", " (B)"))]
    )
    assert isinstance(unfit, UnfitRow) and unfit.reason == "question_too_long"
    assert all(math.isfinite(value) for value in fine)


def test_progress_and_facts(engines, opened):
    heard: list[int] = []
    engines[1.0].generate([asked(PROMPTS[n], n, 4) for n in range(3)], heard.append)
    assert sum(heard) == 3
    name = opened[0]
    if name != "transformers":
        assert engines[1.0].facts()["engine"]["name"] == ("vllm" if name == "vllm" else "openai")

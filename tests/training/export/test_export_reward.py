"""The reward of an export is the score of `cai score`, closing EOS included, whichever engine asks for it and
whatever the template.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import mistake
from exports import by_openrlhf, by_verl, post, scored, served, words
from families import edit_json
from ppo_setup import make_pm, write_prompts
from pyarrow import parquet
from tiny import CHATML, byte_level_tokenizer, make_model, sentencepiece_tokenizer

from cai_cli.errors import RecordError
from cai_cli.models.chat import close_with_eos, encode_pair
from cai_cli.models.load import load_pm
from cai_cli.models.score import score_all
from cai_cli.models.templates import TRANSCRIPT_TEMPLATE, UnfitRow
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message
from cai_cli.training.export.serving import Reward
from cai_cli.training.ppo.rewards import RewardShape
from cai_cli.training.preference.reading import open_preference_model

REPLY = "Mix flour, water and salt.\n\nLet it rest — 2 hours."


def with_end_of_turn():
    """A template whose end of turn is not the EOS."""
    tokenizer = byte_level_tokenizer(CHATML)
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|im_start|>"
    return tokenizer


TOKENIZERS = {
    "chatml": lambda: byte_level_tokenizer(CHATML),
    "transcript": lambda: byte_level_tokenizer(TRANSCRIPT_TEMPLATE),
    "another end of turn": with_end_of_turn,
    "sentencepiece": lambda: sentencepiece_tokenizer(
        "{% for message in messages %}{{ message['content'] }}</s>{% endfor %}"
    ),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def exports(request, cai, tmp_path_factory):
    """The export of a policy and preference model with such a tokenizer, and a row of it."""
    folder = tmp_path_factory.mktemp("exports")
    model = make_model(folder / "lm", tokenizer=TOKENIZERS[request.param]())
    tokenizer = load_tokenizer(str(model))
    ends = [tokenizer.eos_token_id]
    if request.param == "another end of turn":
        ends += [tokenizer.convert_tokens_to_ids("<|im_end|>")]
        edit_json(model / "generation_config.json", eos_token_id=ends)
    pm = make_pm(model, folder / "pm")
    done = cai(*words("verl", model, pm, write_prompts(folder / "p.jsonl"), folder / "verl"))
    assert done.returncode == 0, done.stderr
    row = parquet.read_table(folder / "verl/prompts.parquet").to_pylist()[3]
    row["label"] = row["reward_model"]["ground_truth"]  # as it stands in OpenRLHF's lines
    return folder, tokenizer, row, ends[-1]


def test_both_engines_get_the_score_of_cai_score(cai, exports, tmp_path):
    folder, tokenizer, row, end = exports
    # What a policy that learned the template writes: in transcripts, with the space in front
    reply = [message("assistant", REPLY)]
    ids = encode_pair(tokenizer, row["prompt"], reply, [tokenizer.eos_token_id, end])[1]
    assert ids.pop() == end
    wanted = scored(cai, folder / "pm", row["prompt"], REPLY, tmp_path / "row.jsonl")
    with served(folder / "verl") as url:
        ended = by_openrlhf(url, tokenizer, row, [*ids, end])
        cut_off = by_openrlhf(url, tokenizer, row, ids)
        verls = by_verl(url, tokenizer, row, [*ids, end], folder / "verl")
        verls_cut_off = by_verl(url, tokenizer, row, ids, folder / "verl")
    assert ended == verls == (pytest.approx(wanted, abs=1e-4),) * 2
    # Cut off: the score is that of the same text, closed; the reward pays for it
    assert cut_off == verls_cut_off == (pytest.approx(wanted - 1, abs=1e-4), pytest.approx(wanted, abs=1e-4))


def test_the_closing_eos_makes_the_difference(shaped):
    """Read where OpenRLHF's own reward model reads a reply that was cut off, the score is another one."""
    folder, tokenizer, row = shaped
    pm = load_pm(str(folder / "pm"), "cpu", tokenizer=tokenizer)
    ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
    ids += tokenizer(REPLY, add_special_tokens=False)["input_ids"]
    closed = close_with_eos(ids, tokenizer.eos_token_id)
    open_score, score = score_all(pm, [ids, closed], tokenizer.pad_token_id, 2)
    assert abs(open_score - score) > 1e-3


def test_a_critic_of_either_engine_starts_from_the_score(shaped):
    """OpenRLHF puts a layer without bias under the head's name on the body, verl loads a token classifier."""
    from transformers import AutoModel, AutoModelForTokenClassification

    folder, tokenizer, row = shaped
    ids = torch.tensor([tokenizer.apply_chat_template(row["prompt"], return_dict=False)])
    pm = load_pm(str(folder / "pm"), "cpu", tokenizer=tokenizer)
    wanted = score_all(pm, ids.tolist(), tokenizer.pad_token_id, 1)
    with torch.no_grad():
        verls = AutoModelForTokenClassification.from_pretrained(folder / "pm", num_labels=1)(ids).logits
        body = AutoModel.from_pretrained(folder / "pm")
        openrlhfs = body(ids).last_hidden_state @ pm.score.weight.T
    assert verls[0, -1].tolist() == pytest.approx(wanted, abs=1e-5)
    assert openrlhfs[0, -1].tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def shaped(cai, tmp_path_factory):
    """An export whose scores are normalised and clipped."""
    folder = tmp_path_factory.mktemp("shaped")
    model = make_model(folder / "lm")
    pm = make_pm(model, folder / "pm")
    facts = {
        "stage": "train-pm",
        "options": {},
        "inputs": [],
        "models": [],
        "score_mean": -2.0,
        "score_deviation": 0.5,
    }
    edit_json(pm / "cai.json", **facts)
    shape = ("--normalise-scores", "--score-clip", 4.5, "--missing-eos-penalty", 0.25)
    done = cai(*words("openrlhf", model, pm, write_prompts(folder / "p.jsonl"), folder / "out", *shape))
    assert done.returncode == 0, done.stderr
    row = json.loads((folder / "out/prompts.jsonl").read_text().splitlines()[0])
    return folder, load_tokenizer(str(model)), row


def test_the_reward_is_shaped_as_by_cai_ppo(shaped):
    folder, tokenizer, row = shaped
    ids = tokenizer("Mix flour.", add_special_tokens=False)["input_ids"]
    with served(folder / "out") as url:
        (reward, score), (less, _) = (
            by_openrlhf(url, tokenizer, row, reply) for reply in ([*ids, tokenizer.eos_token_id], ids)
        )
    assert reward == pytest.approx(max(-4.5, min(4.5, (score + 2) / 0.5)))
    assert less == pytest.approx(reward - 0.25)


def test_many_requests_at_once_and_odd_ones(cai, shaped, tmp_path):
    folder, tokenizer, row = shaped
    replies = [f"Mix flour {n} times." for n in range(12)]
    wanted = [scored(cai, folder / "pm", row["prompt"], reply, tmp_path / "r.jsonl") for reply in replies[:2]]
    with served(folder / "out") as url, ThreadPoolExecutor(12) as pool:
        found = list(
            pool.map(
                lambda reply: by_openrlhf(
                    url,
                    tokenizer,
                    row,
                    tokenizer(reply + "<|im_end|>", add_special_tokens=False)["input_ids"],
                )[1],
                replies,
            )
        )
        assert found[:2] == pytest.approx(wanted, abs=1e-4) and len(set(found)) == 12
        # A reply that speaks for the user is scored without the tokens that do, as engines decode it
        forged = tokenizer("a<|im_start|>user\nb<|im_end|>", add_special_tokens=False)["input_ids"]
        alike = tokenizer("auser\nb<|im_end|>", add_special_tokens=False)["input_ids"]
        assert by_openrlhf(url, tokenizer, row, forged) == by_openrlhf(url, tokenizer, row, alike)
        assert by_openrlhf(url, tokenizer, row, [])[1] < 1e3  # nothing at all is a reply, too
        for asked in ([], {"query": ["x"]}, {"query": ["x"], "prompts": ["y"], "labels": ["["]}):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                post(url, asked)
        strange = {"query": ["another text"], "prompts": ["<|im_start|>"], "labels": [row["label"]]}
        with pytest.raises(urllib.error.HTTPError, match="400"):
            post(url, strange)


def test_a_reply_that_the_template_does_not_take_is_read_as_the_policy_wrote_it(shaped, monkeypatch, capsys):
    """Which is what `cai ppo` scores; a run of many machines does not end on it."""
    folder, tokenizer, row = shaped
    pm = open_preference_model(str(folder / "pm"), "cpu")
    reward = Reward(pm, str(folder / "pm"), RewardShape(), ["<|im_end|>"], rows=4)

    def refuse(*_: object) -> list[int]:
        raise UnfitRow("template_refused", "not this one")

    monkeypatch.setattr(reward, "encode", refuse)
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    for end in ("", "<|im_end|>"):
        ids = reward.ids(reward.read(f"{prompt}Mix.{end}", prompt, row["label"]))
        assert tokenizer.decode(ids) == f"{prompt}Mix.<|im_end|>"
    assert "2 replies scored as they were written: template_refused: not this one" in capsys.readouterr().err


def test_a_row_beyond_the_context_is_refused_and_the_others_scored(shaped, monkeypatch):
    """However it is read; a model with learned positions would end the server's CUDA with it."""
    folder, tokenizer, row = shaped
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    with served(folder / "out") as url:
        asked = {"prompts": [prompt], "labels": [row["label"]]}
        with pytest.raises(urllib.error.HTTPError, match="400") as raised:
            post(url, {"query": [prompt + "Mix flour. " * 4096], **asked})
        assert "the preference model reads at most 4096" in raised.value.read().decode()
        assert len(post(url, {"query": [prompt + "Mix flour."], **asked})["scores"]) == 1

    reward = Reward(
        open_preference_model(str(folder / "pm"), "cpu"), str(folder / "pm"), RewardShape(), [], rows=4
    )
    written = reward.read(f"{prompt}Mix.", prompt, row["label"])
    length = len(reward.ids(written))

    def refuse(*_: object) -> list[int]:
        raise UnfitRow("template_refused", "not this one")

    for encode in (reward.encode, refuse):
        monkeypatch.setattr(reward, "encode", encode)
        monkeypatch.setattr(reward, "longest", length)
        assert len(reward.ids(written)) == length
        monkeypatch.setattr(reward, "longest", length - 1)
        with pytest.raises(RecordError, match=f"{length} tokens with its reply"):
            reward.ids(written)


def test_cai_serve_answers_until_it_is_told_to_end(shaped):
    folder, *_ = shaped
    command = [
        sys.executable,
        "-m",
        "cai_cli",
        "serve",
        str(folder / "out"),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline()
        url = line.split("scores at ")[1].split(";")[0]
        assert post(url, {"query": [], "prompts": [], "labels": []}) == {
            "rewards": [],
            "scores": [],
            "extra_logs": {},
        }
    finally:
        server.terminate()
        rest = server.communicate(timeout=60)[1]
    assert server.returncode == 143 and "Traceback" not in rest


def test_cai_serve_refuses_what_is_no_export_or_another_model(cai, shaped, tmp_path):
    folder, *_ = shaped
    mistake(cai("serve", folder / "pm"), "is not an export")
    mistake(
        cai("serve", folder / "out", "--pm", folder / "lm"), "is not the preference model that was exported"
    )

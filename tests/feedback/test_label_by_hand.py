"""Labels computed again with plain transformers calls: no engine, no cache, the question written out here."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny import byte_level_tokenizer, make_model, sentencepiece_tokenizer

from cai_cli.prompting.constitution import load_constitution

INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}</s>{% endif %}"
    "{% endif %}{% endfor %}"
)
TURNS = [("user", "How do I open a lock?"), ("assistant", "Whose is it?"), ("user", "Never mind whose.")]
REPLIES = {"a": ("Take a pick.", "I won't, it may not be yours."), "b": ("Ask a locksmith, please.", "No.")}
TALK = "\n\nHuman: How do I open a lock?\n\nAssistant: Whose is it?\n\nHuman: Never mind whose."


@pytest.fixture(scope="module", params=["byte", "sentencepiece", "inst"])
def judge(request, tmp_path_factory):
    tokenizer = {
        "byte": lambda: byte_level_tokenizer(None),
        "sentencepiece": sentencepiece_tokenizer,
        "inst": lambda: sentencepiece_tokenizer(INST),
    }[request.param]()
    return make_model(tmp_path_factory.mktemp("judge") / request.param, "llama", seed=3, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "comparisons.jsonl"
    prompt = [{"role": role, "content": text} for role, text in TURNS]
    rows = [
        {
            "id": name,
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
            "probability": 1,
            "origin": "human",
        }
        for name, (chosen, rejected) in REPLIES.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def option_logprobs(folder, text: str, chat: bool) -> list[float]:
    """log P of each whole option string after the text, in one batch padded on the right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if chat:
        text = f"<s>[INST] {text.removesuffix(chr(10) + 'The answer is:')} [/INST] The answer is:"
    prompt, *rows = [
        tokenizer(text + tail, add_special_tokens=not chat)["input_ids"] for tail in ("", " (A)", " (B)")
    ]
    assert (
        prompt[0] == (tokenizer.bos_token_id if tokenizer.bos_token else prompt[0]) and prompt[1] != prompt[0]
    )
    # What an option's text makes of the prompt's last tokens is the option's: it starts where the sequences
    # part.
    start = next(
        (t for t, ids in enumerate(zip(prompt, *rows, strict=False)) if len(set(ids)) > 1), len(prompt)
    )
    assert all(len(row) - start > 1 for row in rows), "an option is several tokens"
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits.double(), -1)
    return [
        sum(logprobs[n, t - 1, row[t]].item() for t in range(start, len(row))) for n, row in enumerate(rows)
    ]


def test_a_label_is_the_mean_of_softmaxes_over_orders_and_principles(cai, judge, pairs, tmp_path):
    out = tmp_path / "out.jsonl"
    words = (
        "--pairs",
        pairs,
        "--feedback-model",
        judge,
        "--principles-per-pair",
        "2",
        "--min-mass",
        "0",
        "--out",
        out,
    )
    done = cai("label", *words)
    assert done.returncode == 0, done.stderr
    principles = {principle.id: principle.comparison for principle in load_constitution("article").principles}
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["a", "b"]
    for row in rows:
        chosen, rejected = row["chosen"][0]["content"], row["rejected"][0]["content"]
        assert {chosen, rejected} == set(REPLIES[row["id"]])
        asked = [(judgement["principle"], judgement["order"]) for judgement in row["judgements"]]
        assert len({name for name, _ in asked}) == 2 and len(set(asked)) == 4
        probabilities = []
        for judgement in row["judgements"]:
            first, second = (chosen, rejected) if judgement["order"] == "chosen_first" else (rejected, chosen)
            text = (
                f"Consider the following conversation between a human and an assistant:{TALK}\n\n"
                f"{principles[judgement['principle']]}\nOptions:\n (A) {first}\n (B) {second}\nThe answer is:"
            )
            a, b = option_logprobs(judge, text, chat=judge.name == "inst")
            assert judgement["logprob_a"] == pytest.approx(a, abs=1e-5)
            assert judgement["logprob_b"] == pytest.approx(b, abs=1e-5)
            assert judgement["mass"] == pytest.approx(math.exp(a) + math.exp(b), abs=1e-5)
            first_wins = math.exp(a) / (math.exp(a) + math.exp(b))
            probabilities.append(first_wins if judgement["order"] == "chosen_first" else 1 - first_wins)
        assert (
            row["probability"] == pytest.approx(sum(probabilities) / 4, abs=1e-5)
            and row["probability"] >= 0.5
        )

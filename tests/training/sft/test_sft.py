"""Supervised finetuning: what is trained on, packing that changes no row's loss, held-out parts, tokenizers,
the model card.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import mistake
from datasets import Dataset
from families import make_family
from tiny import CHATML, byte_level_tokenizer, make_model

from cai_cli.artifacts.rejects import Rejected
from cai_cli.console.groups import build
from cai_cli.errors import RunError, UserError
from cai_cli.models.chat import stop_ids
from cai_cli.models.load import load_lm
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message
from cai_cli.rows.splits import is_held_out
from cai_cli.stages import sft
from cai_cli.training.sft.data import TokenRow, read_targets, tokenise
from cai_cli.training.sft.row_files import packed_dataset
from cai_cli.training.sft.trainer import check_isolation, make_trainer, open_model

PROMPT = [message("user", "How do I open it?")]


def round_of(revision: str, **more: str) -> dict:
    return {
        "principle": "p",
        "critique_request": "cr",
        "critique": "c",
        "revision_request": "rr",
        "revision": revision,
        **more,
    }


def chain(name: str, draft: str, *revisions: str, text: str = "How do I open it?") -> dict:
    return {
        "id": name,
        "prompt": [message("user", text)],
        "completion": [message("assistant", revisions[-1])],
        "initial": [message("assistant", draft)],
        "rounds": [round_of(revision) for revision in revisions],
        "kind": "harmful",
    }


def put(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# Targets


def completions(path: Path, which: str, **settings) -> tuple[list[str], list[str]]:
    """(texts to train on, ids rejected)."""
    found = list(read_targets(str(path), which, 0, **settings))
    rejected = [item.id for item in found if isinstance(item, Rejected)]
    return [item.completion[0]["content"] for item in found if not isinstance(item, Rejected)], rejected


def test_a_revision_that_is_the_draft_is_never_a_target(tmp_path):
    rows = [
        chain("a", "Do it.", "Don't.", "No, because."),
        chain("b", "Do it.", "Don't.", "do it"),
        chain("c", "X y", "x, y!", "No."),
    ]
    path = put(tmp_path / "r.jsonl", rows)
    assert completions(path, "final") == (["No, because.", "No."], ["b"])
    assert completions(path, "all") == (["Don't.", "No, because.", "Don't.", "No."], ["b/2", "c/1"])


def test_proportions_take_part_of_the_rows_or_take_them_again(tmp_path):
    """Each copy has an id of its own; rejected rows are told once, whatever the proportion."""
    rows = [chain(f"c{n}", "Do it.", f"No {n}.") for n in range(8)]
    path = put(tmp_path / "r.jsonl", [*rows, chain("same", "Do it.", "Do it.")])

    def ids(source: str) -> tuple[list[str], list[str]]:
        found = list(read_targets(source, "final", 3))
        return [item.id for item in found if not isinstance(item, Rejected)], [
            i.id for i in found if isinstance(i, Rejected)
        ]

    whole, rejected = ids(str(path))
    assert (whole, rejected) == ([row["id"] for row in rows], ["same"])
    half, rejected = ids(f"{path}:0.5")
    assert len(half) == 4 and set(half) < set(whole) and rejected == ["same"]
    more, rejected = ids(f"{path}:2.25")
    assert more[:8] == whole and more[8:16] == [f"{name}#1" for name in whole] and rejected == ["same"]
    assert len(more) == 18 and len(set(more)) == 18 and all(name.endswith("#2") for name in more[16:])
    assert ids(f"{path}:2.25")[0] == more
    # which part is taken is the rows' alone, wherever the file lies
    moved = put(tmp_path / "elsewhere.jsonl", rows)
    assert ids(f"{moved}:0.5")[0] == half and ids(f"{tmp_path}/./r.jsonl:0.5")[0] == half


def test_thinking_is_trained_on_only_when_asked(tmp_path):
    row = chain("a", "Do it.", "No.")
    row["rounds"] = [round_of("No.", revision_thinking="It hurts.", critique_thinking="hm")]
    sample = {
        "id": "s",
        "prompt": PROMPT,
        "completion": [message("assistant", "Yes.")],
        "finish_reason": "stop",
        "thinking": "Fine.",
    }
    path = put(tmp_path / "r.jsonl", [row, sample])
    assert completions(path, "final")[0] == ["No.", "Yes."]
    assert [item.thinking for item in read_targets(str(path), "final", 0)] == ["", ""]
    asked = list(read_targets(str(path), "final", 0, thinking=True))
    assert [item.thinking for item in asked] == ["It hurts.", "Fine."]
    tokenizer = byte_level_tokenizer(CHATML)
    rows = list(tokenise(asked, tokenizer, stop_ids(tokenizer), 200, {}))
    texts = [tokenizer.decode([label for label in row.labels if label != -100]) for row in rows]
    assert texts == [
        "<think>\nIt hurts.\n</think>\n\nNo.<|im_end|>",
        "<think>\nFine.\n</think>\n\nYes.<|im_end|>",
    ]


def test_held_out_goes_by_the_first_human_turn():
    shared = [[message("user", f"Question {n}")] for n in range(400)]
    longer = [[*prompt, message("assistant", "a"), message("user", "and then?")] for prompt in shared]
    apart = [is_held_out(prompt, 0.2, 3) for prompt in shared]
    assert apart == [is_held_out(prompt, 0.2, 3) for prompt in longer]
    assert 50 < sum(apart) < 110
    assert apart != [is_held_out(prompt, 0.2, 4) for prompt in shared]


# Packing


def dataset_of(rows: list[TokenRow]) -> Dataset:
    return Dataset.from_list([{"input_ids": row.ids, "labels": row.labels} for row in rows])


def rows_of_tokens(count: int) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in range(count):
        ids = torch.randint(5, 300, (6 + n * 5 % 29,), generator=generator).tolist()
        start = 2 + n % 3
        rows.append(TokenRow(ids, [-100] * start + ids[start:], "other", False))
    return rows


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_losses_are_those_of_each_row_alone(tmp_path, architecture, attention):
    """Through TRL's collator and loss: the trainer's own loss on a batch of packs, and each token's inside
    it.
    """
    model = make_model(tmp_path / "m", architecture)
    tokenizer, rows = load_tokenizer(str(model)), rows_of_tokens(14)
    given = {"model": str(model), "data": ["unused"], "out": tmp_path / "out", "device": "cpu"}
    options = build(sft.Options, **given, packing=True, max_length=64)
    packs = packed_dataset(dataset_of(rows), 64, 0)
    assert len(packs) < len(rows) and max(len(lengths) for lengths in packs["seq_lengths"]) > 1
    trainer = make_trainer(options, open_model(options, tokenizer), tokenizer, packs, {}, tmp_path / "c")
    trainer.model.set_attn_implementation(attention)
    trainer.model.eval()
    batch = trainer.data_collator([packs[n] for n in range(len(packs))])
    assert "attention_mask" not in batch

    def losses(ids: torch.Tensor, labels: torch.Tensor, **more) -> torch.Tensor:
        with torch.no_grad():
            logits = trainer.model(input_ids=ids, use_cache=False, **more).logits
        return torch.nn.functional.cross_entropy(
            logits[0, :-1].double(), labels[0, 1:], reduction="none", ignore_index=-100
        )

    packed = losses(batch["input_ids"], batch["labels"], position_ids=batch["position_ids"])
    starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["input_ids"].size(1)]
    by_ids = {tuple(row.ids): row for row in rows}
    for start, end in pairwise(starts):
        row = by_ids.pop(tuple(batch["input_ids"][0, start:end].tolist()))
        alone = losses(torch.tensor([row.ids]), torch.tensor([row.labels]))
        assert torch.allclose(packed[start : end - 1], alone, atol=1e-5), (
            (packed[start : end - 1] - alone).abs().max()
        )
    assert not by_ids, "every row is in a pack"
    with torch.no_grad():
        together = trainer.compute_loss(trainer.model, dict(batch)).item()
    trained = batch["labels"][0, 1:] != -100
    assert together == pytest.approx(packed[trained].mean().item(), abs=1e-5)


def test_a_model_that_sees_past_the_border_is_not_packed():
    from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2}
    check_isolation(
        LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=64, num_attention_heads=2)).eval(), "llama"
    )
    with pytest.raises(UserError, match="sees past the border of packed rows"):
        check_isolation(MambaForCausalLM(MambaConfig(**sizes, state_size=4)).eval(), "mamba")


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_what_trl_does_not_know_of_the_logits_is_found_first(base, tmp_path, scale):
    """A scale behind the output layer: TRL's loss is that of other logits, and nothing would say so."""
    options = build(sft.Options, model=str(base), data=["x"], out=tmp_path / "out", held_out=0.0)
    tokenizer = load_tokenizer(str(base))
    model = open_model(options, tokenizer)
    data = dataset_of([TokenRow([1, 2, 3, 4], [1, 2, 3, 4], "helpful", False)])
    model.get_output_embeddings().register_forward_hook(lambda *given: scale * given[-1])
    if scale == 1:
        make_trainer(options, model, tokenizer, data, {}, tmp_path)
        return
    with pytest.raises(
        UserError, match=r"LlamaForCausalLM\): TRL's loss is [\d.]+ where its logits give [\d.]+"
    ):
        make_trainer(options, model, tokenizer, data, {}, tmp_path)


def test_an_architecture_without_a_loss_of_trl_is_one_line(tmp_path):
    base = make_family(tmp_path / "lm", "llama4_text")
    options = build(sft.Options, model=str(base), data=["x"], out=tmp_path / "out", held_out=0.0)
    data = dataset_of([TokenRow([1, 2, 3, 4], [1, 2, 3, 4], "helpful", False)])
    tokenizer = load_tokenizer(str(base))
    with pytest.raises(UserError, match=r"Llama4ForCausalLM\): has no loss to train on"):
        make_trainer(options, open_model(options, tokenizer), tokenizer, data, {}, tmp_path)


# The whole stage


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("base") / "lm", chat_template=None)


@pytest.fixture
def data(tmp_path) -> Path:
    rows = [
        chain(f"r{n}", f"Take key {n}.", "Wait.", f"No, door {n} is not yours.", text=f"Door {n}?")
        for n in range(40)
    ]
    return put(tmp_path / "revisions.jsonl", [*rows, chain("same", "Do it.", "No.", "Do it.", text="Gate?")])


def train(base: Path, data: Path, out: Path, **settings) -> Path:
    sft.run(
        build(
            sft.Options,
            model=str(base),
            data=[str(data)],
            out=out,
            **{"learning_rate": 1e-3, "max_length": 128, **settings},
        )
    )
    return out


def test_a_run_with_lora_packing_and_held_out_part(base, data, tmp_path):
    out = train(
        base,
        data,
        tmp_path / "out",
        lora=True,
        save_adapter=True,
        packing=True,
        held_out=0.3,
        logging_steps=1,
        save_steps=2,
    )
    record = json.loads((out / "cai.json").read_text())
    assert record["counts"] == {"in": 41, "out": 40, "rejected": {"unrevised": 1}}
    assert 4 <= record["held_out"]["rows"] <= 20 and list(record["held_out"]["loss"]) == ["harmful"]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["held_out_loss"] for line in lines if "held_out_loss" in line][-1] == record["held_out"][
        "loss"
    ]["harmful"]
    assert json.loads((out / "rejects.jsonl").read_text())["id"] == "same"
    card = (out / "README.md").read_text()
    assert "| lora_r | 16 |" in card and "| held-out loss, harmful |" in card and str(tmp_path) not in card
    tokenizer = load_tokenizer(str(out))
    assert "Human: " in tokenizer.chat_template
    merged, adapter, before = (load_lm(str(path), device="cpu") for path in (out, out / "adapter", base))
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        assert torch.allclose(merged(ids).logits, adapter(ids).logits, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, before(ids).logits, atol=1e-3)


def test_a_run_that_ends_while_it_saves_measures_nothing_again(base, data, tmp_path, monkeypatch):
    """It goes on from the Trainer's last checkpoint, after the last step: the held-out loss is in the log
    once.
    """
    flags = {"held_out": 0.3, "logging_steps": 2, "save_steps": 2}
    whole = train(base, data, tmp_path / "whole", **flags)

    def fail(*arguments, **settings):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("cai_cli.training.sft.run.save_trained", fail)
        with pytest.raises(OSError, match="the disk is full"):
            train(base, data, tmp_path / "cut", **flags)
    cut = train(base, data, tmp_path / "cut", **flags)
    for name in ("metrics.jsonl", "model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    facts = [json.loads((out / "cai.json").read_text()) for out in (cut, whole)]
    assert facts[0]["held_out"] == facts[1]["held_out"] and facts[0]["train_loss"] == facts[1]["train_loss"]


def test_the_tokenizer_of_another_model_brings_its_template(base, data, tmp_path):
    instruct = make_model(tmp_path / "instruct", chat_template=CHATML)
    out = train(base, data, tmp_path / "out", tokenizer_from=str(instruct))
    assert load_tokenizer(str(out)).chat_template == CHATML
    other = tmp_path / "other"
    make_model(other)
    strange = byte_level_tokenizer(CHATML)
    strange.add_tokens(["zebra"])
    vocabulary = json.loads(strange.backend_tokenizer.to_str())
    words = vocabulary["model"]["vocab"]
    first, second = list(words)[100:102]
    words[first], words[second] = words[second], words[first]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(UserError, match=r"--tokenizer-from .*: token .* is \d+ there and \d+ in the model"):
        train(base, data, tmp_path / "out2", tokenizer_from=str(other))


def test_nothing_to_train_on_is_told(base, tmp_path):
    draft = "Sure, pull the pin and throw it far."
    near = (
        f"{draft[:-1]}!",
        draft.removeprefix("Sure, "),
        f"{draft} Take care.",
        draft.replace("far", "fast"),
    )
    path = put(tmp_path / "r.jsonl", [chain(f"a/{n}", draft, text) for n, text in enumerate(near)])
    with pytest.raises(RunError, match="none of the 4 rows can be trained on") as error:
        train(base, path, tmp_path / "out")
    assert "unrevised 4" in (error.value.hint or "")
    assert not (tmp_path / "out").exists()


def test_settings_that_do_not_go_together(cai, base, data, tmp_path):
    words = ("sft", "--model", base, "--data", data, "--out", tmp_path / "out")
    mistake(cai(*words, "--quantize", "4bit"), "--quantize does nothing without --lora")
    mistake(cai(*words, "--chat-template-kwargs", "{x"), "--chat-template-kwargs: not valid JSON")


def test_a_file_whose_stage_rejected_everything_is_told_and_the_others_are_trained_on(
    base, data, tmp_path, capsys
):
    empty = put(tmp_path / "empty.jsonl", [])
    options = build(
        sft.Options,
        model=str(base),
        data=[str(empty), str(data)],
        out=tmp_path / "both",
        device="cpu",
        num_train_epochs=0.1,
    )
    sft.run(options)
    assert "empty.jsonl: no rows in it" in capsys.readouterr().err
    assert (tmp_path / "both/cai.json").is_file()
    with pytest.raises(UserError, match="no rows in it"):
        sft.run(build(sft.Options, model=str(base), data=[str(empty)], out=tmp_path / "none", device="cpu"))

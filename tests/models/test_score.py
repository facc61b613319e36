"""The preference model's score is the classifier's own logit at the EOS, whatever the padding or the batch."""

from __future__ import annotations

from random import Random

import pytest
import torch
from tiny import byte_level_tokenizer, make_model

from cai_cli.compute.batches import right_pad
from cai_cli.errors import UserError
from cai_cli.models.chat import encode_scored, stop_ids
from cai_cli.models.load import is_preference_model, load_pm
from cai_cli.models.score import final_scores, position_scores, reset_head, score_all, score_head
from cai_cli.models.templates import install_template
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.rows.conversation import message

EOS, PAD = 2, 0  # of tiny's tokenizer: <|im_end|>, <|endoftext|>


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def pm(request, tmp_path_factory):
    path = str(make_model(tmp_path_factory.mktemp(request.param), request.param))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (EOS, PAD)
    model = load_pm(path, "cpu", tokenizer=tokenizer)
    reset_head(model, 0)
    return model


def sequences(count: int) -> list[list[int]]:
    rng = Random(0)
    return [[rng.randrange(3, 300) for _ in range(rng.randint(1, 60))] + [EOS] for _ in range(count)]


def own_logits(model, row: list[int]) -> float:
    """transformers' own forward of one sequence, without any padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits[0, 0].item()


@torch.no_grad()
def test_scores_are_the_classifiers_own_logits(pm):
    rows = sequences(32)
    expected = [own_logits(pm, row) for row in rows]
    assert max(expected) - min(expected) > 0.1
    assert final_scores(pm, rows, PAD).tolist() == pytest.approx(expected, abs=1e-5)
    one_by_one = [final_scores(pm, [row], PAD).item() for row in rows]
    assert one_by_one == pytest.approx(expected, abs=1e-5)
    assert score_all(pm, rows, PAD, 5) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batches_agree_with_the_classifier(pm, side):
    """transformers' batched logits, and ours at the EOS of a batch padded on either side."""
    rows = sequences(8)
    width = max(map(len, rows))
    padding = [[PAD] * (width - len(row)) for row in rows]
    real = [[1] * len(row) for row in rows]
    blank = [[0] * len(part) for part in padding]
    order = (lambda a, b: b + a) if side == "left" else (lambda a, b: a + b)
    ids = torch.tensor([order(row, part) for row, part in zip(rows, padding, strict=True)])
    mask = torch.tensor([order(row, part) for row, part in zip(real, blank, strict=True)])
    ours = position_scores(pm, ids, mask)
    last = torch.full((8,), width - 1) if side == "left" else mask.sum(-1) - 1
    expected = [own_logits(pm, row) for row in rows]
    assert ours[torch.arange(8), last].tolist() == pytest.approx(expected, abs=1e-5)
    if side == "right":
        theirs = pm(input_ids=ids, attention_mask=mask).logits[:, 0].tolist()
        assert theirs == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_positions_count_from_the_first_real_token():
    """Seen with learned positions; rotary ones are relative."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=1, pad_token_id=PAD)).eval()
    row = sequences(1)[0][-9:]
    expected = position_scores(model, torch.tensor([row]), torch.ones(1, 9, dtype=torch.long))
    padded = position_scores(model, torch.tensor([[PAD] * 20 + row]), torch.tensor([[0] * 20 + [1] * 9]))
    assert padded[0, 20:].tolist() == pytest.approx(expected[0].tolist(), abs=1e-5)


@torch.no_grad()
def test_what_follows_or_pads_a_row_does_not_count(pm):
    rows = sequences(4)
    longer = [*rows, [5] * 100 + [EOS]]
    assert final_scores(pm, longer, PAD)[:4].tolist() == pytest.approx(
        final_scores(pm, rows, PAD).tolist(), abs=1e-5
    )
    other_pad = final_scores(pm, longer, 77)[:4].tolist()
    assert other_pad == pytest.approx(final_scores(pm, rows, PAD).tolist(), abs=1e-5)


@torch.no_grad()
def test_the_eos_is_what_is_scored(pm):
    row = sequences(1)[0]
    assert final_scores(pm, [row], PAD).item() != pytest.approx(
        final_scores(pm, [row[:-1]], PAD).item(), abs=1e-4
    )


# The head


def test_a_fresh_head_is_drawn_from_the_seed_alone(pm):
    head = score_head(pm)
    before = head.weight.clone()
    torch.manual_seed(123)
    reset_head(pm, 1)
    assert not torch.equal(head.weight, before)
    assert head.weight.std().item() == pytest.approx((head.in_features + 1) ** -0.5, rel=0.35)
    reset_head(pm, 0)
    assert torch.equal(head.weight, before)


@pytest.mark.parametrize("name", ["score", "classifier"])
def test_head_names(name):
    model = torch.nn.Module()
    setattr(model, name, torch.nn.Linear(4, 1))
    assert score_head(model) is getattr(model, name)


def test_a_model_without_a_head_is_named():
    with pytest.raises(UserError, match="Sequential has no linear score head"):
        score_head(torch.nn.Sequential(torch.nn.Linear(4, 1)))


def test_saved_preference_models_are_told_from_language_models(tmp_path):
    path = make_model(tmp_path / "lm")
    assert not is_preference_model(str(path))
    load_pm(str(path), "cpu").save_pretrained(tmp_path / "pm")
    assert is_preference_model(str(tmp_path / "pm"))


# Templates and tokenizers


def test_text_after_the_end_of_turn_is_cut():
    """ChatML puts a newline behind the end of turn, which is EOS here; where it is not, EOS is put behind it."""
    tokenizer = byte_level_tokenizer()
    reply = [message("assistant", "Mix flour.")]
    ids = encode_scored(tokenizer, [message("user", "Bread?")], reply, stop_ids(tokenizer), 99)
    text = "<|im_start|>user\nBread?<|im_end|>\n<|im_start|>assistant\nMix flour.<|im_end|>"
    assert ids == tokenizer(text)["input_ids"] and ids[-1] == EOS
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", "<|im_start|>"
    ids = encode_scored(tokenizer, [message("user", "Bread?")], reply, stop_ids(tokenizer), 99)
    assert ids == tokenizer(f"{text}<|endoftext|>")["input_ids"]


def test_the_eos_is_there_once_whatever_the_template_writes():
    prompt, reply = [message("user", "Bread?")], [message("assistant", "Mix flour.")]
    for template in (None, "{% for m in messages %}{{ m['content'] }}|{% endfor %}"):
        tokenizer = byte_level_tokenizer(template)
        install_template(tokenizer)
        ids = encode_scored(tokenizer, prompt, reply, stop_ids(tokenizer), 99)
        assert ids[-1] == EOS and ids[-2] != EOS


@torch.no_grad()
def test_a_pad_that_is_the_eos_is_repaired(tmp_path):
    """With pad == EOS, transformers' own pooling looks for the last token that is not EOS: the score would be
    another.
    """
    path = make_model(tmp_path / "lm")
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(path)
    repaired = load_tokenizer(str(path))
    assert repaired.pad_token_id != repaired.eos_token_id == EOS
    model = load_pm(str(path), "cpu", tokenizer=repaired)
    reset_head(model, 0)
    assert model.config.pad_token_id == repaired.pad_token_id
    rows = sequences(6)
    ids, mask = right_pad(rows, repaired.pad_token_id, "cpu")
    expected = [own_logits(model, row) for row in rows]
    assert final_scores(model, rows, repaired.pad_token_id).tolist() == pytest.approx(expected, abs=1e-5)
    assert model(input_ids=ids, attention_mask=mask).logits[:, 0].tolist() == pytest.approx(
        expected, abs=1e-5
    )

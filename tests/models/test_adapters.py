"""Adapters: what learns, what is saved, and that it loads without peft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cai_cli.console.options import AdapterOptions
from cai_cli.errors import RunError, UserError
from cai_cli.models.adapters import add_lora, save_trained, trainable_state
from cai_cli.models.load import load_lm, load_pm
from cai_cli.models.score import score_head
from cai_cli.models.tokenizers import load_tokenizer
from cai_cli.training.parts import put_weights


def options(**settings) -> AdapterOptions:
    return AdapterOptions(lora=True, lora_r=4, **settings)


def nudge(model) -> None:
    """Change everything that learns, as training would."""
    with torch.no_grad():
        for weight in trainable_state(model).values():
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
            weight.add_(0.05 * noise.to(weight.device))


def outputs(model) -> torch.Tensor:
    ids = torch.arange(10, 40, device=model.device).unsqueeze(0)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def test_the_seed_alone_draws_the_adapter_and_only_it_learns(llama: Path) -> None:
    first, second = (add_lora(load_lm(str(llama)), options(), "CAUSAL_LM", seed=3) for _ in range(2))
    states = trainable_state(first), trainable_state(second)
    assert states[0].keys() == states[1].keys()
    assert all("lora_" in name for name in states[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = trainable_state(add_lora(load_lm(str(llama)), options(), "CAUSAL_LM", seed=4))
    assert any(not torch.equal(states[0][name], other[name]) for name in other)


def test_a_checkpoint_puts_the_adapter_back(llama: Path) -> None:
    trained = add_lora(load_lm(str(llama)), options(), "CAUSAL_LM", seed=0)
    nudge(trained)
    fresh = add_lora(load_lm(str(llama)), options(), "CAUSAL_LM", seed=0)
    assert not torch.allclose(outputs(trained), outputs(fresh))
    put_weights(fresh, [trainable_state(trained)])
    assert torch.equal(outputs(trained), outputs(fresh))
    with pytest.raises(RunError, match="of another model"):
        put_weights(load_lm(str(llama)), [trainable_state(trained)])


@pytest.mark.parametrize("quantize", [None, "4bit", "8bit"])
def test_saved_is_the_merged_model(helpful: Path, tmp_path: Path, quantize: str | None) -> None:
    tokenizer = load_tokenizer(str(helpful))
    chosen = options(quantize=quantize, save_adapter=True)
    trained = add_lora(
        load_lm(str(helpful), tokenizer=tokenizer, quantize=quantize), chosen, "CAUSAL_LM", seed=0
    )
    nudge(trained)
    learned = {
        name.replace(".default", ""): weight.clone() for name, weight in trainable_state(trained).items()
    }
    merged = outputs(trained)
    save_trained(trained, tokenizer, tmp_path, chosen, str(helpful), "CAUSAL_LM")
    loaded = load_lm(str(tmp_path))
    assert not (tmp_path / "adapter_config.json").exists()
    assert not getattr(loaded, "is_quantized", False)
    # A quantised base differs by its rounding from the one the adapter is merged into; the adapter itself is
    # what was learned.
    if quantize is None:
        assert torch.allclose(outputs(loaded), merged, atol=1e-3)
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert kept.keys() == learned.keys() and all(torch.equal(kept[name], learned[name]) for name in kept)
    # The adapter's directory serves as a model too, over the unquantised base.
    assert torch.allclose(outputs(load_lm(str(tmp_path / "adapter"))), outputs(loaded), atol=1e-3)
    assert not torch.allclose(outputs(loaded), outputs(load_lm(str(helpful))), atol=1e-1)


def test_an_adapter_of_a_model_that_got_a_pad_token_fits_its_base(llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(llama))
    tokenizer.add_tokens(["<more>"])
    model = add_lora(
        load_lm(str(llama), tokenizer=tokenizer), options(save_adapter=True), "CAUSAL_LM", seed=0
    )
    nudge(model)
    merged = outputs(model)
    save_trained(model, tokenizer, tmp_path, options(save_adapter=True), str(llama), "CAUSAL_LM")
    for folder in (tmp_path, tmp_path / "adapter"):
        loaded = load_lm(str(folder), tokenizer=load_tokenizer(str(folder)))
        assert loaded.get_input_embeddings().num_embeddings == len(tokenizer)
        assert torch.allclose(outputs(loaded)[..., :-1], merged[..., :-1], atol=1e-4)


def test_a_score_head_learns_in_full_and_is_saved(llama: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(llama))
    chosen = options(quantize="4bit")
    model = add_lora(load_pm(str(llama), tokenizer=tokenizer, quantize="4bit"), chosen, "SEQ_CLS", seed=0)
    names = [name for name in trainable_state(model) if "lora_" not in name]
    assert names == ["base_model.model.score.modules_to_save.default.weight"]
    nudge(model)
    head = trainable_state(model)[names[0]].clone()
    save_trained(model, tokenizer, tmp_path, chosen, str(llama), "SEQ_CLS")
    loaded = load_pm(str(tmp_path))
    assert torch.equal(score_head(loaded).weight, head)
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_is_not_quantised(llama: Path, tmp_path: Path) -> None:
    trained = add_lora(load_lm(str(llama)), options(), "CAUSAL_LM", seed=0)
    trained.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="name the merged model"):
        load_lm(str(tmp_path), quantize="4bit")

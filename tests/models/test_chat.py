"""From conversations to ids: templates, one BOS, system turns, prompt a prefix of the whole, what ends a
reply, padding.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny import CHATML, byte_level_tokenizer

from cai_cli.errors import UserError
from cai_cli.models.chat import (
    Renderer,
    close_with_eos,
    encode_pair,
    encode_prompt,
    encode_scored,
    encode_text,
    stop_ids,
    vocabulary_hash,
)
from cai_cli.models.templates import UnfitRow, install_template, render, require_template, template_hash
from cai_cli.models.tokenizers import separate_padding
from cai_cli.rows.conversation import message

PROMPT = [message("user", "How do I bake bread?")]
REPLY = [message("assistant", "Mix flour and water.")]
SYSTEM = message("system", "Be brief.")
DROPS_SYSTEM = CHATML.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
)


def with_bos(tokenizer):
    """The same tokenizer, putting a BOS in front of every text it encodes by itself, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens({"bos_token": "<s>"})
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return tokenizer


@pytest.fixture
def chatml():
    return byte_level_tokenizer()


@pytest.fixture
def transcript():
    """A tokenizer with a BOS of its own and the transcript template."""
    tokenizer = with_bos(byte_level_tokenizer(None))
    install_template(tokenizer)
    return tokenizer


# Templates


def test_transcript_template(transcript):
    conversation = [SYSTEM, *PROMPT, *REPLY, message("user", "And then?")]
    assert render(transcript, conversation, add_generation_prompt=True) == (
        "<s>\n\nHuman: Be brief.\n\nHow do I bake bread?\n\nAssistant: Mix flour and water.<|im_end|>"
        "\n\nHuman: And then?\n\nAssistant:"
    )


def test_one_bos(transcript):
    """The template's, not a second one from the tokenizer; plain text gets the tokenizer's."""
    bos = transcript.bos_token_id
    assert transcript("Hi")["input_ids"][0] == bos
    for ids in (
        encode_prompt(transcript, PROMPT),
        Renderer(transcript).encode(PROMPT),
        encode_text(transcript, "Hi"),
    ):
        assert ids[0] == bos
        assert ids.count(bos) == 1


def test_plain_text_never_closes_with_eos(chatml):
    from tokenizers.processors import TemplateProcessing

    end = chatml.eos_token
    closing = TemplateProcessing(single=f"$A {end}", special_tokens=[(end, chatml.eos_token_id)])
    chatml.backend_tokenizer.post_processor = closing
    assert chatml("Hi")["input_ids"][-1] == chatml.eos_token_id
    assert encode_text(chatml, "Hi") == chatml("Hi", add_special_tokens=False)["input_ids"]


def test_install_template_keeps_the_models_own(chatml, tmp_path):
    install_template(chatml)
    assert chatml.chat_template == CHATML
    file = tmp_path / "own.jinja"
    file.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    install_template(chatml, file)
    assert render(chatml, PROMPT) == "How do I bake bread?"
    with pytest.raises(UserError, match="no such file"):
        install_template(chatml, tmp_path / "none.jinja")


def test_a_missing_template_is_named():
    tokenizer = byte_level_tokenizer(None)
    with pytest.raises(UserError, match=r"--pm x: its tokenizer has no chat template"):
        require_template(tokenizer, "--pm x")
    with pytest.raises(UserError, match="--model"):
        Renderer(tokenizer).render(PROMPT)
    assert Renderer(tokenizer).render("plain text") == "plain text"


@pytest.mark.parametrize("template", [DROPS_SYSTEM, REFUSES_SYSTEM], ids=["drops", "refuses"])
def test_system_text_goes_into_the_first_user_turn(template):
    tokenizer = byte_level_tokenizer(template)
    merged = [message("user", "Be brief.\n\nHow do I bake bread?")]
    assert render(tokenizer, [SYSTEM, *PROMPT]) == render(byte_level_tokenizer(), merged)


def test_a_dropped_system_text_is_seen_though_the_user_says_the_same():
    """Whether the template dropped it is not a matter of its words appearing somewhere."""
    said = [SYSTEM, message("user", "My motto: Be brief.")]
    assert "Be brief.\n\nMy motto: Be brief." in render(byte_level_tokenizer(DROPS_SYSTEM), said)


def test_a_system_role_is_kept_where_the_template_has_one(chatml):
    assert render(chatml, [SYSTEM, *PROMPT]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHow"
    )


def test_a_template_that_refuses_a_row_rejects_it():
    tokenizer = byte_level_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(UnfitRow, match="roles must alternate") as caught:
        render(tokenizer, PROMPT)
    assert caught.value.reason == "template_refused"


def test_continue_final_message(chatml, transcript):
    """A closing assistant turn is left open: the model goes on with it."""
    conversation = [*PROMPT, message("assistant", "The answer is:")]
    assert Renderer(chatml).render(conversation) == (
        "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\nThe answer is:"
    )
    assert (
        Renderer(transcript).render(conversation)
        == "<s>\n\nHuman: How do I bake bread?\n\nAssistant: The answer is:"
    )


def test_own_template_is_told_from_the_transcript_one(chatml, transcript):
    plain = byte_level_tokenizer(None)
    forms = [
        (renderer.form(), renderer.reply_form) for renderer in map(Renderer, (chatml, transcript, plain))
    ]
    assert forms == [("chat", "chat"), ("transcript", "chat"), ("transcript", "transcript")]
    assert Renderer(chatml).form("transcript") == "transcript" and Renderer(transcript).form("chat") == "chat"


# Prompt and completion


@pytest.mark.parametrize("name", ["chatml", "transcript"])
def test_prompt_is_a_prefix_of_the_whole(name, request):
    tokenizer = request.getfixturevalue(name)
    prompt_ids, completion_ids = encode_pair(tokenizer, PROMPT, REPLY, stop_ids(tokenizer))
    assert prompt_ids == encode_prompt(tokenizer, PROMPT)
    assert tokenizer.decode(prompt_ids) == render(tokenizer, PROMPT, add_generation_prompt=True)
    assert render(tokenizer, [*PROMPT, *REPLY]).startswith(tokenizer.decode(prompt_ids + completion_ids))
    assert completion_ids[-1] == tokenizer.eos_token_id


def test_chatml_text_after_the_end_of_turn_is_cut(chatml):
    """The template writes `<|im_end|>\\n`; a sampled reply ends at `<|im_end|>`."""
    assert render(chatml, [*PROMPT, *REPLY]).endswith("<|im_end|>\n")
    _, completion_ids = encode_pair(chatml, PROMPT, REPLY, stop_ids(chatml))
    assert chatml.decode(completion_ids) == "Mix flour and water.<|im_end|>"


def test_a_template_without_an_end_of_turn_gets_the_eos():
    tokenizer = byte_level_tokenizer(
        "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    _, completion_ids = encode_pair(tokenizer, PROMPT, REPLY, stop_ids(tokenizer))
    assert tokenizer.decode(completion_ids) == "Mix flour and water.<|im_end|>"


def test_a_prompt_that_is_no_prefix_rejects_the_row():
    """Templates of reasoning models open a thought that a finished reply has not."""
    tokenizer = byte_level_tokenizer(
        CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    )
    with pytest.raises(UnfitRow) as caught:
        encode_pair(tokenizer, PROMPT, REPLY, stop_ids(tokenizer))
    assert caught.value.reason == "prompt_not_a_prefix"


# What ends a reply


def test_stop_ids(chatml):
    eos = chatml.convert_tokens_to_ids("<|im_end|>")
    end_of_text = chatml.convert_tokens_to_ids("<|endoftext|>")
    assert stop_ids(chatml) == [eos]
    assert stop_ids(chatml, SimpleNamespace(eos_token_id=[eos, end_of_text])) == sorted([eos, end_of_text])
    # The end of turn comes from the template
    chatml.eos_token, chatml.pad_token = (
        "<|endoftext|>",
        "<|im_start|>",
    )
    assert stop_ids(chatml) == sorted([eos, end_of_text])
    assert stop_ids(chatml, SimpleNamespace(eos_token_id=7)) == sorted([eos, end_of_text, 7])


@pytest.mark.parametrize("eos", ["<|im_end|>", "<|endoftext|>"])
def test_scored_rows_end_in_one_eos(chatml, eos):
    """Whether the end of turn is the EOS or not."""
    chatml.eos_token = eos
    ids = encode_scored(chatml, PROMPT, REPLY, stop_ids(chatml), 512)
    assert ids[-1] == chatml.eos_token_id
    assert ids[-2] != chatml.eos_token_id
    closing = "<|im_end|>" if eos == "<|im_end|>" else "<|im_end|><|endoftext|>"
    assert chatml.decode(ids).endswith(f"Mix flour and water.{closing}")


def test_scored_rows_are_never_cut(chatml):
    length = len(encode_scored(chatml, PROMPT, REPLY, stop_ids(chatml), 512))
    assert len(encode_scored(chatml, PROMPT, REPLY, stop_ids(chatml), length)) == length
    with pytest.raises(UnfitRow, match=f"{length} tokens") as caught:
        encode_scored(chatml, PROMPT, REPLY, stop_ids(chatml), length - 1)
    assert caught.value.reason == "too_long"


def test_close_with_eos():
    assert close_with_eos([5, 6], 2) == [5, 6, 2]
    assert close_with_eos([5, 2], 2) == [5, 2]
    assert close_with_eos([], 2) == [2]


# Padding and fingerprints


def test_padding_is_never_the_eos():
    tokenizer = byte_level_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    separate_padding(tokenizer)
    # An unused reserved token serves
    assert (tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_end|>",
        "<|endoftext|>",
    )
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    before = len(tokenizer)
    separate_padding(tokenizer)
    assert tokenizer.pad_token == "<pad>"  # none is left: a new one
    assert tokenizer.pad_token_id == before
    own = byte_level_tokenizer()
    separate_padding(own)
    assert own.pad_token == "<|endoftext|>"


def test_fingerprints():
    one, same, other = byte_level_tokenizer(), byte_level_tokenizer(), byte_level_tokenizer(DROPS_SYSTEM)
    other.add_tokens(["new"])
    assert template_hash(one) == template_hash(same) != template_hash(other)
    assert vocabulary_hash(one) == vocabulary_hash(same) != vocabulary_hash(other)
    assert template_hash(byte_level_tokenizer(None)) is None

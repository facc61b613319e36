"""Whether another engine can read the policy and the preference model as we do: whole models, a critic made of
the score head, replies that end where ours end, prompts in the same text.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai_cli.artifacts.places import is_adapter
from cai_cli.errors import UserError
from cai_cli.models.configs import load_config
from cai_cli.models.paths import HEAD_NAMES, hub_folder
from cai_cli.models.templates import UnfitRow, apply
from cai_cli.models.weight_files import model_shapes
from cai_cli.rows.conversation import Conversation, system_in_first_user_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.models.chat import Renderer

IMAGE = "<image>"  # OpenRLHF reads a picture there


def check_whole(path: str, flag: str) -> None:
    if is_adapter(Path(path)):
        told = f"{flag} {path}: is an adapter, and the engine loads whole models"
        raise UserError(told, "name the merged model: our trainers save it beside the adapter")


def place_of(path: str) -> str:
    """A directory's whole path, a name on the Hub as it is."""
    return os.path.abspath(path) if Path(path).is_dir() else path  # noqa: PTH100 - links stay as they are


def check_critic(pm: str, engine: str) -> str:
    """The name of the score head. Raises UserError where the engine could not make its critic of the preference
    model: OpenRLHF puts a layer without bias on the body, verl loads a token classifier.
    """
    from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING

    config = load_config(pm, "--pm")
    folder = Path(pm) if Path(pm).is_dir() else hub_folder(pm, "--pm")
    names = model_shapes(folder, "--pm", pm)
    head = next((name for name in HEAD_NAMES if f"{name}.weight" in names), HEAD_NAMES[0])
    hint = "take a preference model of an architecture such as Llama's"
    if engine == "openrlhf" and f"{head}.bias" in names:
        raise UserError(f"--pm {pm}: its score head has a bias, which OpenRLHF's critic would not have", hint)
    if engine == "verl" and type(config) not in MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING:
        raise UserError(
            f"--pm {pm}: transformers has no token classifier for {config.model_type}, verl's critic", hint
        )
    return head


def check_stops(path: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The texts of the tokens that end a reply here. Raises UserError where vLLM would write on past one: it
    knows the tokenizer's EOS and those of generation_config.json.
    """
    from transformers import GenerationConfig

    from cai_cli.models.chat import stop_ids

    try:
        config = GenerationConfig.from_pretrained(path)
    except OSError:  # there is none
        config = GenerationConfig()
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stops = stop_ids(tokenizer, config)
    for index in stops:
        if index not in (*known, tokenizer.eos_token_id):
            name = tokenizer.convert_ids_to_tokens(index)
            told = f"--model {path}: replies end with {name}, which its generation_config.json does not name"
            raise UserError(told, f"add {index} to eos_token_id there: the engine would write on past it")
    return [str(tokenizer.decode([index])) for index in stops]


def engine_prompt(renderer: Renderer, prompt: Conversation) -> Conversation:
    """The conversation of which the engine's use of the template makes the text that the policy gets here."""
    wanted, words = renderer.render(prompt), renderer.template_kwargs
    for turns in (prompt, system_in_first_user_turn(prompt)):
        try:
            if apply(renderer.tokenizer, turns, add_generation_prompt=True, **words) == wanted:
                return turns
        except UnfitRow:
            continue
    raise AssertionError("the template makes of one of the two what it made here")


def check_no_images(conversations: dict[str, Conversation]) -> None:
    for name, turns in conversations.items():
        if any(IMAGE in turn["content"] for turn in turns):
            raise UserError(
                f"--prompts: prompt {name!r} holds {IMAGE}, where OpenRLHF reads a picture", "leave it out"
            )


def facts(path: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a policy that comes back must have in common with the exported one."""
    from cai_cli.models.chat import vocabulary_hash
    from cai_cli.models.templates import template_hash

    return {
        "vocabulary": vocabulary_hash(tokenizer),
        "chat_template": template_hash(tokenizer),
        "config": json.loads(load_config(path).to_json_string(use_diff=False)),
    }

"""What another engine made of an exported policy -> a model directory of ours.

In: the directory that OpenRLHF saved, or that verl's model_merger wrote. It is loaded as every model is (safetensors
alone, none of its own code, whole, adapters merged) and saved under the exported model's own configuration, with its
provenance in cai.json. Refused is another tokenizer, another architecture, a weight that is not finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cai_cli.artifacts.models import ModelArtifact
from cai_cli.console.messages import say, tell_next
from cai_cli.console.options import MODEL, OutputOptions
from cai_cli.errors import UserError
from cai_cli.models.paths import base_and_adapters, check_model
from cai_cli.models.weight_files import tensor_types
from cai_cli.processes.ranks import check_one_process
from cai_cli.training.export.exported import Exported, read_export

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAME = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
HINT = "import what was trained from this export"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the manifest: the two directories are what the model was made from."""

    output: OutputOptions
    policy: Annotated[str, MODEL]
    from_export: Annotated[str, MODEL]


def import_policy(options: Options) -> None:
    check_one_process("a policy is imported")
    export = read_export(Path(options.from_export), "--from-export")
    path, out = options.policy, options.output
    check_model(path, "policy", "language model")
    artifact = ModelArtifact("import", options)
    if artifact.done:
        return

    from cai_cli.models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(path, "policy")
    check_policy(export, path, tokenizer)
    if out.dry_run:
        say(f"{path}: of {export.settings['engine']} {export.settings['version']}, fits {export.folder}")
        return

    from cai_cli.models.adapters import save_whole
    from cai_cli.models.finite import odd_weight
    from cai_cli.models.load import load_lm
    from cai_cli.training.run_facts import model_facts

    model = load_lm(path, "cpu", stored_dtype(path), "policy", tokenizer)
    if (name := odd_weight(dict(model.named_parameters()))) is not None:
        raise UserError(f"policy {path}: its weight {name} is not finite", "import an earlier checkpoint")
    # What an engine writes into the configuration while it trains, such as use_cache, is not the model's.
    model.config = own_config(export, model.config)
    artifact.start()
    artifact.finish(
        lambda folder: save_whole(model, tokenizer, folder),
        trained_by=f"{export.settings['engine']} {export.settings['version']}",
        ppo={each["flag"]: each["value"] for each in export.settings["carried"]},
        **model_facts(model, tokenizer),
    )
    tell_next(
        "cai sample --model", out.out, "--prompts", "TEST.jsonl", "--out", out.out.parent / "replies.jsonl"
    )


def check_policy(export: Exported, path: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where it is not of the exported model's vocabulary, template and architecture."""
    from cai_cli.models.chat import vocabulary_hash
    from cai_cli.models.configs import load_config
    from cai_cli.models.templates import template_hash

    model = export.settings["model"]
    for name, found in (
        ("vocabulary", vocabulary_hash(tokenizer)),
        ("chat_template", template_hash(tokenizer)),
    ):
        if found != model[name]:
            told = f"policy {path}: its {name.replace('_', ' ')} is not the exported model's"
            raise UserError(told, HINT)
    config = load_config(path, "policy")
    own, its = own_config(export, config).get_text_config(), config.get_text_config()
    for name in SAME:
        if getattr(own, name, None) != getattr(its, name, None):
            told = f"policy {path}: {name} is {getattr(its, name, None)}, and {getattr(own, name, None)} in the exported model"
            raise UserError(told, HINT)


def own_config(export: Exported, config: Any) -> Any:
    """The exported model's configuration. Raises UserError where it is of another architecture than `config`."""
    recorded = export.settings["model"]["config"]
    if recorded.get("model_type") != config.model_type:
        told = f"policy: its architecture is {config.model_type}, and {recorded.get('model_type')} in the exported model"
        raise UserError(told, HINT)
    return type(config).from_dict(recorded)


def stored_dtype(path: str) -> str:
    """The type that the weights are saved in; float32 where there are several."""
    folder, _ = base_and_adapters(path, "policy")
    found = {kind for file in Path(folder).glob("*.safetensors") for kind in tensor_types(file).values()}
    return DTYPES.get(found.pop(), "float32") if len(found) == 1 else "float32"

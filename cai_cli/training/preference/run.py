"""What `pmp` and `train-pm` share around `fit_pairwise`: the text that is scored, the held-out part, training and saving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cai_cli.artifacts.manifest import read_manifest
from cai_cli.artifacts.models import ModelArtifact
from cai_cli.artifacts.places import manifest_path
from cai_cli.artifacts.rejects import Rejected
from cai_cli.console.messages import say, show_text, table, warn_all
from cai_cli.errors import RunError
from cai_cli.evaluation.cautions import label_cautions, rate_cautions, undecided_rate
from cai_cli.evaluation.comparisons import COLUMNS, table_rows
from cai_cli.feedback.pairs import IDENTICAL
from cai_cli.models.paths import check_model
from cai_cli.prompting.prompts import question_answer
from cai_cli.rows.conversation import Conversation
from cai_cli.rows.jsonl import write_atomically, write_rows
from cai_cli.rows.records import Comparison
from cai_cli.rows.splits import is_held_out

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cai_cli.training.preference.pairwise import TokenPair

Format = Literal["qa", "chat"]
Encode = Callable[[Conversation, Conversation], list[int]]


def reading(tokenizer: PreTrainedTokenizerBase, form: Format, max_length: int) -> Encode:
    """The one way from (prompt, reply) to the ids whose last one, EOS, is scored: in training, evaluation and `cai score`.

    "chat": the conversation through the chat template, template text after the end of turn cut. "qa": `Question: ...
    Answer: ...`. The function raises UnfitRow where the ids are more than `max_length`; nothing is ever cut.
    """
    from cai_cli.models.chat import close_with_eos, encode_scored, encode_text, stop_ids
    from cai_cli.models.templates import UnfitRow, check_text

    stops = stop_ids(tokenizer)
    eos = int(tokenizer.eos_token_id)

    def chat(prompt: Conversation, reply: Conversation) -> list[int]:
        return encode_scored(tokenizer, prompt, reply, stops, max_length)

    def qa(prompt: Conversation, reply: Conversation) -> list[int]:
        text = question_answer(prompt[-1]["content"], reply[0]["content"])
        check_text(tokenizer, text)
        ids = close_with_eos(encode_text(tokenizer, text), eos)
        if len(ids) > max_length:
            raise UnfitRow("too_long", f"{len(ids)} tokens, at most {max_length} fit")
        return ids

    return chat if form == "chat" else qa


def format_of(pm: str) -> Format:
    """How a preference model was taught to read: a `pmp` checkpoint says so in its cai.json, all others read chats."""
    manifest = read_manifest(manifest_path(Path(pm)))
    return "qa" if manifest and manifest["stage"] == "pmp" and manifest["options"].get("format") == "qa" else "chat"


@dataclass(frozen=True, slots=True)
class PreferenceModel:
    """A preference model ready to score: `encode` gives the ids that it reads."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    encode: Encode
    pad: int


def open_reading(path: str, flag: str = "--pm") -> tuple[PreTrainedTokenizerBase, Encode]:
    """The tokenizer of a preference model and how it reads a conversation of at most its context.

    Raises UserError where the model is none, or has no chat template to read with.
    """
    from cai_cli.models.load import context_length, load_config, load_tokenizer
    from cai_cli.models.templates import require_template

    check_model(path, flag, "preference model")
    tokenizer = load_tokenizer(path, flag)
    form = format_of(path)
    if form == "chat":
        require_template(tokenizer, f"{flag} {path}")
    return tokenizer, reading(tokenizer, form, context_length(load_config(path, flag)))


def open_preference_model(path: str, device: str = "auto", dtype: str = "auto", flag: str = "--pm") -> PreferenceModel:
    """Load a preference model to score with. Raises UserError as `open_reading` does."""
    from cai_cli.models.load import load_pm

    tokenizer, encode = open_reading(path, flag)
    model = load_pm(path, device, dtype, flag, tokenizer)
    return PreferenceModel(model, tokenizer, encode, int(tokenizer.pad_token_id))


def tokenise(
    weighted: Iterable[tuple[Comparison, float]], encode: Encode
) -> tuple[list[tuple[Comparison, TokenPair]], list[Rejected]]:
    """Both replies of each comparison as ids closed by EOS; pairs that do not fit are rejected by name, never cut.

    So is a pair of one text twice: its loss has no gradient, and a tie is right for it whatever the model.
    """
    from cai_cli.models.templates import UnfitRow
    from cai_cli.training.preference.pairwise import TokenPair

    pairs, rejected = [], []
    for row, weight in weighted:
        try:
            chosen, other = encode(row.prompt, row.chosen), encode(row.prompt, row.rejected)
            if chosen == other:
                raise UnfitRow(IDENTICAL, "chosen and rejected are one text for the model: neither can be better")
        except UnfitRow as error:
            rejected.append(Rejected(row.id, error.reason, error.detail))
            continue
        pairs.append((row, TokenPair(chosen, other, row.probability, weight, row.origin, row.kind)))
    return pairs, rejected


def split_held_out(pairs: list[tuple[Comparison, TokenPair]], share: float, seed: int) -> tuple[list[TokenPair], list[TokenPair]]:
    """Divide by a hash of the first human turn, so that no prompt is on both sides."""
    training: list[TokenPair] = []
    held_out: list[TokenPair] = []
    for comparison, pair in pairs:
        (held_out if is_held_out(comparison.prompt, share, seed) else training).append(pair)
    return training, held_out


def run_pairwise_stage(
    artifact: ModelArtifact,
    options: Any,
    tokenizer: PreTrainedTokenizerBase,
    training: list[TokenPair],
    held_out: list[TokenPair],
    rejected: list[Rejected],
) -> None:
    """Load the classifier, train it, save it with what was measured on the held-out part."""
    if not training:
        hint = "lower --held-out, or give comparisons of more prompts"
        raise RunError(f"all {len(held_out)} pairs fell into the held-out part: none is left to train on", hint)
    if options.dry_run:
        dry_run(training, tokenizer, len(rejected))
        return
    import transformers

    from cai_cli.models.adapters import add_lora, save_trained
    from cai_cli.models.language_head import language_head, save_language_head
    from cai_cli.models.load import load_pm, training_dtype
    from cai_cli.models.paths import is_preference_model
    from cai_cli.models.saved_configs import settle_configs
    from cai_cli.models.score import reset_head
    from cai_cli.processes.ranks import is_main, main_first
    from cai_cli.training.model_card import model_card
    from cai_cli.training.preference.pairwise import disable_dropout, fit_pairwise
    from cai_cli.training.rehearsal import learned_bytes, rehearse_saving, steps_of
    from cai_cli.training.run_facts import model_facts

    transformers.set_seed(options.seed)
    model = load_pm(options.model, options.device, training_dtype(options.dtype), "--model", tokenizer, options.quantize)
    settle_configs(model, tokenizer)
    if not is_preference_model(options.model):
        reset_head(model, options.seed)
    disable_dropout(model)
    head = language_head(model, options.model) if options.lm_coef else None
    if options.lora:
        model = add_lora(model, options, "SEQ_CLS", options.seed)
    if not artifact.begun:
        saves = steps_of(len(training), options) // options.save_steps
        main_first(lambda: rehearse_saving(model, tokenizer, artifact.folder, artifact.checkpoints, saves, learned_bytes(model)))
    artifact.start()
    if rejected:
        if is_main():
            write_rows(artifact.folder / "rejects.jsonl", [item.to_row() for item in rejected])
        say(f"{len(rejected)} pairs rejected into {artifact.folder / 'rejects.jsonl'}")
    say(f"{artifact.manifest['stage']}: {len(training)} pairs, {len(held_out)} held out")
    facts = fit_pairwise(
        model, training, held_out, options, artifact.folder, int(tokenizer.pad_token_id), head, artifact.manifest["stage"]
    )
    counts = dict(sorted(Counter(item.reason for item in rejected).items()))
    seen = len(training) + len(held_out)
    facts |= {"counts": {"in": seen + len(rejected), "out": seen, "rejected": counts}, **model_facts(model, tokenizer)}
    rates = rate_cautions(options.learning_rate, options.warmup_steps, facts["steps"])
    facts["warnings"] = warn_all(pairwise_cautions(training + held_out, facts) + rates)
    card = model_card({**artifact.manifest, **facts}, artifact.folder)

    def save(folder: Path) -> None:
        tokenizer.padding_side = "right"  # positions then count from the first real token in any library
        save_trained(model, tokenizer, folder, options, options.model, "SEQ_CLS")
        save_language_head(head, folder)
        write_atomically(folder / "README.md", card)

    artifact.finish(save, **facts)
    if evaluation := facts.get("evaluation"):
        table("held-out comparisons", COLUMNS, table_rows(evaluation))


def pairwise_cautions(pairs: list[TokenPair], facts: dict[str, Any]) -> list[str]:
    """Labels that say nothing, and a model that tells no two held-out texts apart."""
    found = label_cautions(undecided_rate([pair.probability for pair in pairs]))
    if facts.get("score_deviation") == 0:
        found.append("all held-out texts have the same score: the model tells none apart")
    return found


def dry_run(pairs: list[TokenPair], tokenizer: PreTrainedTokenizerBase, rejected: int) -> None:
    """Show the first pair as text, with the token that is scored."""
    for name, ids in (("chosen", pairs[0].chosen), ("rejected", pairs[0].rejected)):
        show_text(f"{name}: {tokenizer.decode(ids)!r}\n  scored token: {ids[-1]} {tokenizer.decode(ids[-1:])!r}")
    tokens = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    say(f"{len(pairs)} pairs, {tokens} tokens; {rejected} pairs would be rejected")

"""The word-level tokenizer of the micro-world: one token a word with the space before it, and one for each
marker.

Decoding what was encoded gives the same text, markers and line breaks included, as long as every word is
known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING

from cai_cli.microworld import answers, corpus, features, grammar, wordings
from cai_cli.prompting import prompts
from cai_cli.rows.conversation import message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = SPECIALS = ("<pad>", "<bos>", corpus.EOS, "<unk>")

MARKERS = (*prompts.TRANSCRIPT_STOPS, "\n\nAnswer:", "Question:")
# Markers first: they must not fall apart into line breaks, a word and a colon.
PATTERN = "|".join(
    (*map(re.escape, MARKERS), r" ?\([AB]\)", r" ?[A-Za-z]+(?:'[a-z]+)?", r"\n\n", r"[\s\S]")
).replace("\\\n", "\\n")


def split(text: str) -> list[str]:
    """The tokens of a text, before the vocabulary."""
    return re.findall(PATTERN, text)


def frame_texts() -> Iterator[str]:
    """The fixed texts around requests and answers, and all that principles and critiques say."""
    conversation = [message("user", "How")]
    for kind in wordings.KINDS:
        for part in wordings.PARTS:
            yield from wordings.frames(kind, part)
    yield from (
        f"x {phrase} and x" for part in wordings.phrases().values() for p in part.values() for phrase in p
    )
    yield prompts.comparison_prompt(conversation, "First", "First", "Which")
    yield prompts.revision_prompt(conversation, "First", "Check", "The", "Rewrite")
    yield prompts.question_answer("How", "First")
    yield from (*corpus.FACTS, *MARKERS, "\n", "\n\n", *" .,?!:;-'\"")
    yield from map(prompts.option, prompts.OPTION_LETTERS)
    yield from answers.FRAMES
    yield from (
        state + ending
        for states in features.STATES.values()
        for state in states
        for ending in features.ENDINGS
    )
    yield features.FINE_REASON
    yield from (*grammar.WAYS, *(f"x {words}" for words in grammar.CIRCUMSTANCES))
    yield from (f"x {words}" for words in grammar.OWNERS_SELF + grammar.OWNERS_OTHER)


def content_texts() -> Iterator[str]:
    """Every content word of the world, with a space before it."""
    for entry in grammar.categories():
        for action, thing in product(entry.actions, entry.things):
            yield f"x {action.phrase} {thing.name} {' '.join(grammar.steps(action, thing))} {action.harm or ''}"
            yield f"x {grammar.alternative(thing)}"


def vocabulary() -> list[str]:
    """All tokens: the special ones first, then the world's in alphabetical order."""
    found: set[str] = set()
    for text in (*frame_texts(), *content_texts()):
        found.update(split(text))
    # A sentence can start a text or follow another one, so capitalised words are known with and without a
    # space.
    found |= {token[1:] for token in found if re.match(r" [A-Z(]", token)}
    found |= {f" {token}" for token in found if re.fullmatch(r"[A-Z][A-Za-z']*", token)}
    found -= {"{", "}", "x", " x"}
    return [*SPECIALS, *sorted(found - set(SPECIALS))]


def build_tokenizer(chat_template: bool) -> PreTrainedTokenizerFast:
    """The tokenizer; with the transcript chat template if asked for."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from cai_cli.models.templates import TRANSCRIPT_TEMPLATE

    words = vocabulary()
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    core.decoder = decoders.Fuse()
    bos = [(BOS, words.index(BOS))]
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=bos
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    if chat_template:
        tokenizer.chat_template = TRANSCRIPT_TEMPLATE
    return tokenizer

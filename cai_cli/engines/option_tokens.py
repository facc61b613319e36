"""Options and their prompts encoded together, and where among the ids an option begins."""

from __future__ import annotations

from cai_cli.compute.prefix_tree import OptionTokens, shared_length
from cai_cli.engines.base import OptionRequest
from cai_cli.models.chat import Renderer
from cai_cli.models.templates import UnfitRow


def encode_options(
    renderer: Renderer, context: int, requests: list[OptionRequest]
) -> list[list[OptionTokens] | UnfitRow]:
    """Of each request, the ids of its prompt with each of its options; or why there are none. What is scored
    starts where any option leaves the prompt's own tokens.
    """
    encoded: list[list[OptionTokens] | UnfitRow] = []
    texts = [(request.prompt, ["", *request.options]) for request in requests]
    for request, rows in zip(requests, renderer.encode_all(texts), strict=True):
        if isinstance(rows, UnfitRow):
            encoded.append(rows)
        elif (longest := max(map(len, rows))) > context:
            encoded.append(UnfitRow("question_too_long", f"{longest} tokens, the context holds {context}"))
        else:
            start = shared_length(rows)
            lost = [
                option for option, row in zip(request.options, rows[1:], strict=True) if len(row) <= start
            ]
            if lost:  # scored as certain
                encoded.append(
                    UnfitRow("option_without_tokens", f"the tokenizer makes no token of {lost[0]!r}")
                )
            else:
                encoded.append([OptionTokens(row, start) for row in rows[1:]])
    return encoded


def read_at_once(options: list[OptionTokens]) -> bool:
    """Whether the options differ in their last token alone, and nothing else of them is scored."""
    return len({tuple(option.ids[:-1]) for option in options}) == 1 and all(
        option.start == len(option.ids) - 1 for option in options
    )

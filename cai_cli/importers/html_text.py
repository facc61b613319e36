"""HTML of a post -> text a model can read: Markdown-like, parsed by lexbor (selectolax).

Kept: paragraphs (blank line between), line breaks, lists (nested, numbered), headings, quotes, code (fenced
or in backticks, its spaces untouched), tables (cells joined by " | "), the text of links, the description of
images. Dropped: addresses, emphasis, scripts and styles. The walk is iterative and the indentation bounded,
so nesting of any depth is survived; the parser's own time is quadratic in that depth (0.8 s for 100,000
characters of nothing but <div>), so callers bound the length of what they pass.
"""

from __future__ import annotations

from selectolax.lexbor import LexborHTMLParser, LexborNode

LINE_BREAK = "\0"  # stands for <br> until a block is written; the HTML parser never lets a NUL through
BLANK = LINE_BREAK + " \t\r\n\f\xa0"
DROPPED = frozenset({"script", "style", "head", "template", "noscript", "iframe", "object", "-comment"})
PARAGRAPHS = frozenset(
    {"p", "div", "dl", "table", "section", "article", "details", "summary", "figure", "center"}
)
LINES = frozenset({"tr", "dt", "dd", "caption", "thead", "tbody", "figcaption"})
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
LISTS = frozenset({"ul", "ol"})
CELLS = frozenset({"td", "th"})
# What the editor of Stack Exchange puts when the author wrote nothing
STOCK_ALT = "enter image description here"
BLOCKS = PARAGRAPHS | LINES | LISTS | HEADINGS.keys() | {"li", "blockquote"}  # what `_Writer.close` knows
SPECIAL = BLOCKS | CELLS | DROPPED | {"code", "pre", "br", "img", "hr", "sup"}  # what `_Writer.open` knows
MAX_INDENT = 8  # levels of quotes and lists that still indent


def html_to_text(html: str) -> str:
    """The readable text of one HTML fragment, without blank ends; "" for a fragment without text."""
    body = LexborHTMLParser(html).body
    if body is None:
        return ""
    writer = _Writer()
    walk(body, writer)
    return writer.text()


def walk(body: LexborNode, writer: _Writer) -> None:
    """Feed every node of `body` to `writer` in document order."""
    pending: list[tuple[LexborNode | None, str]] = []  # (where to go on, element that closes there)
    node = body.child
    while node is not None or pending:
        if node is None:
            node, closing = pending.pop()
            if closing in BLOCKS:
                writer.close(closing)
            continue
        tag = node.tag or ""
        following = node.next
        if tag == "-text":
            writer.inline.append(node.text_content or "")
        elif tag not in SPECIAL or writer.open(tag, node):
            pending.append((following, tag))
            following = node.child
        node = following


class _Writer:
    """Collects inline text, and writes it out as a block whenever a block-level element begins or ends."""

    def __init__(self) -> None:
        self.inline: list[str] = []
        self.out: list[str] = []
        self.gap = 0  # newlines owed before the next block
        self.indents: list[
            list[str]
        ] = []  # per open quote or list item: prefixes of its next line and of later ones
        self.in_row = False  # a cell of the table row was met
        self.numbers: list[int | None] = []  # per open list: next number, None for bullets

    def text(self) -> str:
        self.block(0)
        return "".join(self.out).strip("\n")

    def open(self, tag: str, node: LexborNode) -> bool:
        """Begin an element; True when its children are still to be visited."""
        if tag in PARAGRAPHS:
            self.block(2)
        elif tag == "code":
            self.code(node.text())
            return False
        elif tag == "br":
            self.inline.append(LINE_BREAK)
        elif tag == "li":
            self.open_item()
        elif tag in LISTS:
            self.block(1 if self.numbers else 2)
            self.numbers.append(first_number(node) if tag == "ol" else None)
        elif tag == "pre":
            self.fence(node.text())
            return False
        elif tag in LINES:
            self.block(1)
            self.in_row = False
        elif tag in CELLS:
            if self.in_row:
                self.inline.append(" | ")
            self.in_row = True
        elif tag == "blockquote":
            self.block(2)
            self.indents.append(["> ", "> "])
        elif tag in HEADINGS:
            self.block(2)
            self.inline.append(HEADINGS[tag])
        elif tag == "img":
            self.inline.append(image_text(node))
        elif tag == "hr":
            self.block(2)
        elif tag == "sup":
            self.inline.append("^")
        return tag not in DROPPED

    def close(self, tag: str) -> None:
        if tag in PARAGRAPHS or tag in HEADINGS:
            self.block(2)
        elif tag in LINES:
            self.block(1)
        elif tag == "li" or tag == "blockquote":
            self.block(1 if tag == "li" else 2)
            self.indents.pop()
        elif tag in LISTS:
            self.block(1 if len(self.numbers) > 1 else 2)
            self.numbers.pop()

    def open_item(self) -> None:
        self.block(1)
        marker = "- "
        if self.numbers and self.numbers[-1] is not None:
            marker = f"{self.numbers[-1]}. "
            self.numbers[-1] += 1
        self.indents.append([marker, " " * len(marker)])

    def code(self, text: str) -> None:
        if text.strip():
            mark = "``" if "`" in text else "`"
            self.inline.append(f"{mark}{text}{mark}")

    def fence(self, text: str) -> None:
        """A code block, its own line breaks and spaces kept."""
        self.block(2)
        text = text.strip("\n").rstrip()
        if text:
            mark = "```"
            while mark in text:
                mark += "`"
            self.write([mark, *text.split("\n"), mark])
        self.gap = 2

    def block(self, gap: int) -> None:
        """Write the inline text collected so far as one block; at least `gap` newlines come before the next."""
        if self.inline:
            joined = "".join(self.inline).strip(BLANK)
            self.inline.clear()
            if joined:
                self.write([line.strip() for line in one_space(joined).split(LINE_BREAK)])
        self.gap = max(self.gap, gap)

    def write(self, lines: list[str]) -> None:
        if self.out:
            self.out.append("\n" * max(self.gap, 1))
        self.gap = 0
        if not self.indents:
            self.out.append("\n".join(lines))
            return
        shown = self.indents[:MAX_INDENT]
        first, later = "".join(indent[0] for indent in shown), "".join(indent[1] for indent in shown)
        for indent in shown:
            indent[0] = indent[1]
        self.out.append("\n".join([first + lines[0], *[(later + line).rstrip() for line in lines[1:]]]))


def one_space(text: str) -> str:
    """Every run of white space as one space: four times as fast as splitting into words."""
    for blank in "\n\t\r\f\xa0":
        text = text.replace(blank, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text


def first_number(node: LexborNode) -> int:
    """The `start` of an ordered list, 1 where it is missing or odd."""
    start = node.attributes.get("start") or "1"
    return int(start) if start.isascii() and start.isdigit() and len(start) < 10 else 1


def image_text(node: LexborNode) -> str:
    alt = " ".join((node.attributes.get("alt") or "").split())
    return f"[image: {alt}]" if alt and alt.lower() != STOCK_ALT else "[image]"

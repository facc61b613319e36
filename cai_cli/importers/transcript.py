r"""Public transcripts (`\n\nHuman: ...\n\nAssistant: ...`) -> conversations.

The rule for role markers inside a turn. Turns alternate, so a marker starts a turn only where it names the *other* speaker:

- `\n\nAssistant:` while the assistant is speaking (or `\n\nHuman:` while the human is) cannot start a turn. It is text of the
  turn that is going on and stays in it, letter for letter.
- `Human:` or `Assistant:` without two newlines before it is text as well.
- `\n\nHuman:` inside an assistant's turn cannot be told from a turn of the human, and is one.

So `to_transcript` gives back the transcript, but for white space at the ends of turns, and turns alternate as chat templates ask.
"""

from __future__ import annotations

from cai_cli.conversation import ASSISTANT, HUMAN, TURN, Conversation, message
from cai_cli.importers.reject import Refused

ROLE_OF = {"Human": "user", "Assistant": "assistant"}


def parse_transcript(text: str) -> Conversation:
    """Turns with their text stripped at both ends; an assistant's turn that ends the transcript may be empty.

    Raises Refused: `not_a_transcript`, `starts_with_assistant`, `empty_turn`.
    """
    if text.lstrip().startswith((HUMAN.strip(), ASSISTANT.strip())):
        text = f"\n\n{text.lstrip()}"  # the published ones have the two newlines; copies often have lost them
    marks = list(TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        raise Refused("not_a_transcript", "expected it to start with 'Human:'")
    if marks[0].group(1) != "Human":
        raise Refused("starts_with_assistant")
    turns = [(marks[0], marks[0].end())]  # the marker of each turn, and where its text starts
    for mark in marks[1:]:
        opening, start = turns[-1]
        if mark.group(1) != opening.group(1):
            turns.append((mark, mark.end()))
        elif not text[start : mark.start()].strip():
            turns[-1] = (opening, mark.end())  # nothing was said after the first of the two markers
    conversation = []
    for number, (opening, start) in enumerate(turns):
        last = number == len(turns) - 1
        content = text[start : len(text) if last else turns[number + 1][0].start()].strip()
        role = ROLE_OF[opening.group(1)]
        if not content and not (last and role == "assistant"):
            raise Refused("empty_turn", f"turn {number + 1} ({role})")
        conversation.append(message(role, content))
    return conversation

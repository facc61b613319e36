"""Errors a user can meet. Each is one line and a next step; anything else is a bug and shows its traceback.

CaiError
├── UserError            a mistake in the command or its input: exit 2
│   └── RecordError      a row of a file: names file, line and field
└── RunError             the command was right but the run failed: exit 1
"""

from __future__ import annotations

import re


class CaiError(Exception):
    """Base of all errors shown without a traceback."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(CaiError):
    """The command or a file it names is wrong."""

    exit_code = 2


class RecordError(UserError):
    """A row is malformed. `field` is the path inside the row, such as `rounds[1].critique`."""

    def __init__(
        self, field: str, problem: str, hint: str | None = None, *, place: str | None = None
    ) -> None:
        self.field = field
        self.problem = problem
        where = f"{place}: " if place else ""
        what = f"field `{field}`: " if field else ""
        super().__init__(f"{where}{what}{problem}", hint)

    def at(self, place: str) -> RecordError:
        """The same error with its place, such as `prompts.jsonl:7`."""
        return RecordError(self.field, self.problem, self.hint, place=place)


class RunError(CaiError):
    """The run could not be carried out to its end."""

    exit_code = 1


def first_line(error: BaseException) -> str:
    """What any error says, in one line; with the next one where the first is but a heading."""
    lines = [
        line.strip() for line in str(getattr(error, "strerror", None) or error).splitlines() if line.strip()
    ]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1]) if lines else type(error).__name__


# What torch, the libraries below it and the system say where memory is not to be had.
NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|_ALLOC_FAILED", re.IGNORECASE
)


def lacks_memory(error: BaseException) -> bool:
    """Whether an error, or the one that it was made of, is a lack of memory, of a GPU or of the machine."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, MemoryError) or (
            isinstance(found, RuntimeError | OSError) and NO_MEMORY.search(str(found))
        ):
            return True
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return False

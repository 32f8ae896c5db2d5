"""What is wrong with an environment: every problem at once, each with the entry it is about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Problem:
    """`entry` names what is wrong as a person would find it; `line` counts from 1, None where there is no file."""

    entry: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.entry} {self.message}"


class InvalidEnvironment(ValueError):  # noqa: N818 - a finding, not a mistake of the program
    """An environment that cannot be used; the text has a line for each problem."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def entry(path: Path) -> str:
    """`dependencies[3].pip[0]` for a path."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text

"""The commands of docs/first-rental.md, each with what the page says that must be seen then."""

import re
from dataclasses import dataclass

from tests.paths import REPOSITORY

PAGE = REPOSITORY / "docs" / "first-rental.md"
VARIES = "…"
# What the page says between a command and what must be seen.
ENDS, CTRL_C = "You must see", "Press Ctrl-C when you see"
REPEAT = "Repeat the command until you see"
# The pods of the loopback RunPod have no GPU, so nobody sees this line there.
ON_A_GPU = "GPU test: 1 × … computed correctly"
_STEP = re.compile(
    rf"```bash\n(?P<command>.*?)```\n\n[^`]*?(?P<how>{ENDS}|{CTRL_C}|{REPEAT})(?P<more>[^`]*?):\n\n"
    r"```text\n(?P<seen>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Step:
    """A command of the page, and the lines that must be seen, in this order.

    `how` is ENDS if the command ends by itself with `code`, CTRL_C if it is then interrupted, and
    REPEAT if it is run again until the lines are seen.
    """

    command: str
    how: str
    code: int
    lines: tuple[str, ...]


def steps_of(page: str) -> list[Step]:
    """Return the steps of the page, in order. A block that belongs to no step is an error."""
    steps = []
    for found in _STEP.finditer(page):
        code = re.search(r"exit code (\d+)", found["more"])
        lines = tuple(found["seen"].splitlines())
        steps.append(Step(found["command"], found["how"], int(code[1]) if code else 0, lines))
    assert len(steps) == page.count("```bash\n") == page.count("```text\n"), "a block stands alone"
    return steps


def first_unseen(lines: tuple[str, ...], output: str) -> str | None:
    """Return the first line that the output does not have after the lines before; None: it has all.

    `…` in a line stands for anything within one line of the output, and a space for any number of
    spaces.
    """
    at = 0
    for line in lines:
        words = [r"[ \t]+".join(map(re.escape, part.split())) for part in line.split(VARIES)]
        found = re.compile("[^\n]*".join(words)).search(output, at)
        if found is None:
            return line
        at = found.end()
    return None

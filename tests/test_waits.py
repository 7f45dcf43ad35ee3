"""No test waits for a process without a limit: a suite that hangs says nothing."""

from __future__ import annotations

import ast

import pytest

from tests.paths import TESTS

RUN = ("run", "call", "check_call", "check_output")
# Only files with one of these are parsed: all tests together take seconds.
WAITING = ("subprocess", "communicate", "wait(", "stdout")


def without_limit(code: str) -> list[int]:
    """Return the lines of `code` that wait for a process, or read its output, without a limit."""
    lines: list[int] = []
    if not any(word in code for word in WAITING):
        return lines
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and _waits(node):
            lines.append(node.lineno)
        elif isinstance(node, ast.For | ast.comprehension) and _is_output(node.iter):
            lines.append(node.iter.lineno)
    return lines


def _is_output(read: ast.expr) -> bool:
    return isinstance(read, ast.Attribute) and read.attr == "stdout"


def _waits(call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute):
        return False
    limited = any(keyword.arg == "timeout" for keyword in call.keywords)
    owner = ast.unparse(function.value)
    if owner == "subprocess":
        return function.attr in RUN and not limited
    if function.attr == "communicate":
        return not limited
    return function.attr == "wait" and "process" in owner and not (limited or call.args)


def test_each_wait_for_a_process_has_a_limit() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in without_limit(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "use tests/support/waiting.py, which says what it waited for"


@pytest.mark.parametrize(
    "code",
    [
        "subprocess.run(command, check=True)",
        "process.wait()",
        "output, _ = self._process.communicate()",
        "for line in process.stdout: print(line)",
        "next(line for line in process.stdout if line)",
    ],
)
def test_a_wait_without_a_limit_is_found(code: str) -> None:
    assert without_limit(code) == [1]

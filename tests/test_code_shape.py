"""The shape of the code: tests are where their modules are, and functions and classes are small."""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.conftest import LONGEST_FIRST
from tests.paths import REPOSITORY, TESTS
from tools.count_code import CEILING, sizes

PACKAGES = ("pion", "pipeline")
# By which part of it a number may be lower than its ceiling.
SLACK = 0.005
MOST_LINES, MOST_PARAMETERS = 50, 6

# By "path name", each with its reason.
LONG_FUNCTIONS: set[str] = set()
MANY_PARAMETERS = {
    # The library's public function. Its users name each setting.
    "pion/generation/generate.py generate",
    # Only tests replace the clock, and only a model that is sharded has its weights apart.
    "pion/train/trainer.py __init__",
    # Four of the seven are clocks and chance. Only tests replace them.
    "pipeline/state/stores/retry.py retrying",
}
# By "path Class.attribute", five at most.
SET_OUTSIDE_INIT: set[str] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Shape:
    """What is too large, or made in parts, in the code; by "path name"."""

    long: set[str]
    many_parameters: set[str]
    set_outside_init: set[str]


@functools.cache
def shape() -> Shape:
    """Parse each file once, and keep no tree: collections of garbage look through all trees."""
    found = Shape(set(), set(), set())
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            _look_at(path, found)
    return found


def _look_at(path: Path, found: Shape) -> None:
    name = path.relative_to(REPOSITORY)
    for node in definitions(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            found.set_outside_init.update(f"{name} {node.name}.{a}" for a in set_outside_init(node))
            continue
        if lines(node) > MOST_LINES:
            found.long.add(f"{name} {node.name}")
        if parameters(node) > MOST_PARAMETERS:
            found.many_parameters.add(f"{name} {node.name}")


def definitions(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Yield the functions and classes at any depth. There are none in expressions."""
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, Function | ast.ClassDef):
            yield node
        nodes.extend(
            child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr)
        )


def parameters(function: Function) -> int:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return sum(argument.arg not in ("self", "cls") for argument in every)


def lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def test_no_function_is_longer_than_a_page() -> None:
    assert shape().long == LONG_FUNCTIONS


def test_every_text_has_an_encoding_also_where_ruff_does_not_know_that_it_is_a_path() -> None:
    bare = re.compile(
        r"\.read_text\(\)|\btext=True|\.write_text\([^\n]*(?<!encoding=\"utf-8\")\)$", re.M
    )
    found = [p for package in PACKAGES for p in (REPOSITORY / package).rglob("*.py")]
    assert [path for path in found if bare.search(path.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("pattern", "places"),
    [
        # Hours are tokens by a speed. Who wants them asks for an estimate.
        (r"/ [\w.( *]*(tokens_per_second|by_phase)", {"pipeline/rent/plan/estimate.py"}),
        # Money has a sign, cents, and `<$0.01`.
        (r"(\$\{[^}]*|\{dollars):,?\.2f", {"pipeline/console/formats.py"}),
    ],
    ids=["hours", "money"],
)
def test_hours_are_predicted_and_money_is_spelled_in_one_place(
    pattern: str, places: set[str]
) -> None:
    found = (REPOSITORY / "pipeline").rglob("*.py")
    texts = {str(path.relative_to(REPOSITORY)): path.read_text("utf-8") for path in found}
    assert {name for name, text in texts.items() if re.search(pattern, text)} == places


def test_no_function_takes_more_than_six_parameters() -> None:
    assert shape().many_parameters == MANY_PARAMETERS


def set_outside_init(class_: ast.ClassDef) -> set[str]:
    """Return the attributes that a method other than `__init__` sets first."""
    declared: set[str] = set()
    elsewhere: set[str] = set()
    for statement in class_.body:
        targets: list[ast.expr] = []
        if isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        elif isinstance(statement, ast.Assign):
            targets = statement.targets
        declared |= {target.id for target in targets if isinstance(target, ast.Name)}
    for method in class_.body:
        if not isinstance(method, Function) or not method.args.args or _bound_to_class(method):
            continue
        found = declared if method.name in ("__init__", "__post_init__") else elsewhere
        found |= _assigned(method, method.args.args[0].arg)
    return elsewhere - declared


def _bound_to_class(method: Function) -> bool:
    names = {node.id for node in method.decorator_list if isinstance(node, ast.Name)}
    return bool(names & {"classmethod", "staticmethod"})


def _assigned(method: Function, me: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == me
    }


def test_an_object_is_complete_once_it_is_made() -> None:
    assert shape().set_outside_init == SET_OUTSIDE_INIT
    assert len(SET_OUTSIDE_INIT) <= 5


def test_an_attribute_set_outside_init_is_found() -> None:
    code = "class A:\n def __init__(self): self.a = 1\n def f(self): self.b = 1"
    (class_,) = ast.parse(code).body
    assert isinstance(class_, ast.ClassDef)
    assert set_outside_init(class_) == {"b"}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_test_lies_where_its_module_does(package: str) -> None:
    files = sorted((TESTS / package).rglob("test_*.py"))
    assert files
    astray = [path for path in files if not _has_module(path)]
    assert not astray


def _has_module(test: Path) -> bool:
    """Return whether test_X.py is next to module X, or to a module that X continues after "_".

    The files of a page, such as pipeline/serve/page/, count as a module. test_refusals.py has the
    rows next to it.
    """
    if test.stem == "test_refusals":
        return test.with_name("refusals.yaml").exists()
    folder = REPOSITORY / test.parent.relative_to(TESTS)
    name = test.stem.removeprefix("test_")
    names = [path.stem for path in folder.glob("*.py")]
    names += [path.parent.name for path in folder.glob("*/page.html")]
    return any(name == module or name.startswith(f"{module}_") for module in names)


def test_the_files_that_come_first_are_there() -> None:
    stems = {path.stem for path in TESTS.rglob("test_*.py")}
    assert set(LONGEST_FIRST) <= stems


def test_the_code_stays_under_its_ceiling_and_the_ceiling_comes_down_with_the_code() -> None:
    """A feature brings its room by taking something out. If a ceiling must rise, CHANGELOG.md says
    what a user gets for it."""
    ceiling, now = json.loads(CEILING.read_text()), sizes()
    assert ceiling.keys() == now.keys()
    assert not {name: most for name, most in ceiling.items() if now[name] > most}
    too_high = {name for name, most in ceiling.items() if now[name] < most * (1 - SLACK)}
    assert not too_high, "run `python tools/count_code.py --lower`"


def test_what_tests_wrap_by_name_is_there() -> None:
    """A renamed function would be found out months later, by a soak test."""
    for path in TESTS.rglob("*.py"):
        for name in re.findall(r'"((?:pion|pipeline)\.[\w.]+:[\w.]+)"', path.read_text("utf-8")):
            resolve_name(name)

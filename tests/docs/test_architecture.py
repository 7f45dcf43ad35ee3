"""docs/architecture.md has the rooms and the order of the contract in pyproject.toml."""

import re
import tomllib
from itertools import groupby

from tests.paths import REPOSITORY

ROW = re.compile(r"(?m)^\| (\d+) \| `(\w+)(/|\.py)` \| .+\. \|$")
TEXT = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_table_is_the_contract():
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    layers = next(
        contract["layers"]
        for contract in pyproject["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    rows = [(int(number), room) for number, room, _ in ROW.findall(TEXT)]
    by_number = [[room for _, room in same] for _, same in groupby(rows, key=lambda row: row[0])]
    assert by_number == [layer.split(" | ") for layer in layers]
    assert [number for number, _ in rows] == sorted(number for number, _ in rows)


def test_every_room_is_there_with_its_right_ending():
    ending = {room: end for _, room, end in ROW.findall(TEXT)}
    folders = {p.name for p in (REPOSITORY / "pipeline").iterdir() if (p / "__init__.py").exists()}
    files = {p.stem for p in (REPOSITORY / "pipeline").glob("*.py")} - {"__init__"}
    assert {room for room, end in ending.items() if end == "/"} == folders
    assert {room for room, end in ending.items() if end == ".py"} == files

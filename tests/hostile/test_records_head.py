"""HEAD.json with a bad value in any field is damaged: the file and the place are named."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

import pytest

from pion.errors import BadInput
from pion.untrusted import LARGEST_RECORD
from pipeline.state.record_json import EPOCHS, Number
from pipeline.state.records import CheckpointEntry, Head, Trash
from pipeline.state.run_state import RunState
from tests.hostile.hostile_run import NAME, as_json, full_head, make_hostile_run, pion, replace
from tests.hostile.record_attacks import Attack, Place, at_every_place, attacks_on, nested, places

GOOD = as_json(full_head())
CASES = attacks_on(GOOD)
# HEAD has no meaning without them, although the field itself has a default.
NEEDED = {("claims",), ("claims", 0), ("format",)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunState:
    return make_hostile_run(tmp_path_factory.mktemp("head") / "runs")


def test_each_field_has_something_to_attack() -> None:
    assert [place for place, value in places(GOOD) if value is None or value in ({}, [])] == []


@at_every_place(GOOD)
def test_a_field_of_head_is_what_its_type_says(case: Attack) -> None:
    data = case.on(GOOD)
    if may_be_read(case):
        Head.from_json(data, "store/demo/HEAD.json").to_json()
        return
    with pytest.raises(BadInput, match=r"^store/demo/HEAD\.json (is damaged|has format)") as error:
        Head.from_json(data, "store/demo/HEAD.json")
    assert len(str(error.value)) < 500
    if case.what not in ("deep", "missing") and case.place not in NEEDED:
        assert ".".join(map(str, case.place)) in str(error.value)


def may_be_read(case: Attack) -> bool:
    """Return whether the types of HEAD's fields allow the attack's value."""
    outer, kind = without_none(kind_of(case.place[:-1])), kind_of(case.place)
    if (case.place in NEEDED and case.what == "missing") or case.what == "deep":
        return False
    if case.what == "missing":
        if not dataclasses.is_dataclass(outer):
            return True  # an item of a list, or a key of a free object
        field = next(f for f in dataclasses.fields(outer) if f.name == case.place[-1])
        required = (dataclasses.MISSING, dataclasses.MISSING)
        return (field.default, field.default_factory) != required
    if case.what in ("null", "NaN"):  # older pions wrote NaN, which is read as null
        return kind is Any or NoneType in get_args(kind)
    if case.what == "wrong type":
        return kind is Any
    if case.what in ("1e300", "-1"):
        return kind is Any or kind == Number
    return kind is Any or kind in (str, str | None)


def kind_of(place: Place) -> Any:
    """Return the type of the value at a place in HEAD."""
    kind: Any = Head
    for part in place:
        kind = without_none(kind)
        if dataclasses.is_dataclass(kind):
            kind = typing.get_type_hints(kind, include_extras=True)[part]
        elif kind is not Any:
            arguments = get_args(kind)
            kind = arguments[1] if issubclass(get_origin(kind), Mapping) else arguments[0]
    return kind


def without_none(kind: Any) -> Any:
    if get_origin(kind) is UnionType:
        return next(arg for arg in get_args(kind) if arg is not NoneType)
    return kind


# ---------------------------------------------------------------- through the commands

# The attacks that also go through `pion status`, where a type allows them.
SHOWN = ("escape", "missing")
READ = [case for case in CASES if may_be_read(case)]
REFUSED = [case for case in CASES if not may_be_read(case)]
COMMANDS = {
    "status": ("status", "{run}"),
    "status of all": ("status",),
    "json": ("status", "{run}", "--json"),
    "checkpoints": ("checkpoints", "{run}"),
    "report": ("report", "{run}"),
    "generate": ("generate", "{run}", "--prompt", "a"),
    "fork": ("fork", "{run}", "new"),
    "stop": ("stop", "{run}"),
    "run": ("run", "job.yaml", "store={store}"),
}


@pytest.mark.parametrize("case", [c for c in READ if c.what in SHOWN], ids=str)
def test_what_a_field_may_be_is_shown_without_control_characters(
    run: RunState, case: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, "HEAD.json", case.on(GOOD))
    code, output = pion(capsys, "status", run.url)
    assert code == 0, output
    assert "\x1b" not in output
    assert "\x9b" not in output


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", REFUSED[::151], ids=str)
def test_every_command_refuses_a_damaged_head(
    run: RunState,
    case: Attack,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(run.store.url.removeprefix("file://"))
    monkeypatch.chdir(folder.parent)
    job = run.read_job("0123")
    assert job is not None
    Path("job.yaml").write_text(job)
    Path("text").mkdir(exist_ok=True)
    Path("text/a.txt").write_text("a text\n\n" * 200)
    Path("talks.jsonl").write_text('{"messages": []}\n')
    data = case.on(GOOD)
    replace(run, "HEAD.json", data)
    arguments = [part.format(run=run.url, store=folder) for part in COMMANDS[command]]
    code, output = pion(capsys, *arguments)
    assert code == 2, output
    assert f"{NAME}/HEAD.json" in output
    assert "Nothing was changed" in output
    assert run.store.read(run.key("HEAD.json")) == data


# ---------------------------------------------------------------- the whole file


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe{}",
        b"[]",
        b"5",
        b"{",
        nested(100_000).encode(),
        b'{"format": true}',
        b'{"format": 1.0}',
        b'{"format": 1, "owner": {}}',
        '{"format": 1}'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_head_is_damaged(
    run: RunState, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(run, "HEAD.json", data)
    code, output = pion(capsys, "status", run.url)
    assert code == 2
    assert f"{NAME}/HEAD.json is damaged" in output


@pytest.mark.parametrize("key", ["../../etc", "/etc/passwd", "a//b", "a\nb", "", ".", "a/.lock-x"])
@pytest.mark.parametrize("field", ["checkpoints", "trash", "forked", "stages"])
def test_a_key_that_no_store_has_is_damaged(field: str, key: str) -> None:
    head = full_head()
    changes: dict[str, Any] = {
        "checkpoints": (dataclasses.replace(head.checkpoints[0], key=key),),
        "trash": (Trash(key, 0.0),),
        "forked": key,
        "stages": {"sft": dataclasses.replace(head.stages["pretrain"], checkpoint=key)},
    }
    head = dataclasses.replace(head, **{field: changes[field]})
    with pytest.raises(
        BadInput, match=rf"HEAD\.json is damaged: {field}.* is not a possible value"
    ):
        Head.from_json(head.to_json(), "HEAD.json")


def test_an_unknown_key_is_of_a_newer_pion() -> None:
    raw = {**GOOD, "claims": [{**GOOD["claims"][0], "colour": "red"}]}
    message = r"HEAD\.json has colour in claims\.0, .*newer pion wrote.*Update pion"
    with pytest.raises(BadInput, match=message):
        Head.from_json(json.dumps(raw).encode(), "HEAD.json")


# ---------------------------------------------------------------- honest files


def test_a_head_with_nan_of_an_older_pion_is_read_and_never_written_again() -> None:
    head = full_head()
    nan = {"held_out_loss": float("nan"), "other": float("inf"), "good": 2.5}
    old = dataclasses.replace(
        head,
        checkpoints=(dataclasses.replace(head.checkpoints[0], metrics=nan),),
        stages={"evaluate": dataclasses.replace(head.stages["evaluate"], result={"a": [nan]})},
    )
    found = Head.from_json(json.dumps(dataclasses.asdict(old)).encode(), "HEAD.json")
    read = {"held_out_loss": None, "other": None, "good": 2.5}
    assert found.checkpoints[0].metrics == read
    assert found.stages["evaluate"].result == {"a": [read]}
    assert b"NaN" not in old.to_json() + found.to_json()
    assert Head.from_json(old.to_json(), "HEAD.json") == found


def test_a_head_of_half_the_limit_is_read() -> None:
    head = full_head()

    def entry(number: int) -> CheckpointEntry:
        return dataclasses.replace(head.checkpoints[0], key=f"checkpoints/sft/{number}-1")

    many = tuple(map(entry, range(2000)))
    write_ids = ("w" * (LARGEST_RECORD // 2),)
    large = dataclasses.replace(head, checkpoints=many, epoch=EPOCHS // 2, write_ids=write_ids)
    assert Head.from_json(large.to_json(), "HEAD.json") == large

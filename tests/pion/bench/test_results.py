"""A result may come from another machine: it is read strictly, and a bad file is named."""

import copy
import json
import tomllib

import pytest

from pion.bench import card
from pion.bench.card import Card, file_name
from pion.bench.results import (
    LARGEST_FILE,
    MOST_ROWS,
    Results,
    Row,
    TrainSpeed,
    read_results,
    train_speeds,
    write_results,
)
from pion.errors import BadInput
from tests.paths import REPOSITORY

SPEED = {
    "model": "pion-small",
    "params": 103_000_000,
    "flops_per_token": 7.5e8,
    "seq_len": 2048,
    "dtype": "bfloat16",
    "compiled": True,
    "recompute": False,
    "micro_batch": 16,
    "tokens_per_second": 61_000.0,
    "mfu": 0.31,
}
SAVE = {"bytes": 1_240_000_000, "stall_seconds": 0.2, "bytes_per_second": 6.2e9}
A40 = Card("NVIDIA A40", "8.6", 45 * 2**30, "570.1", "2.15.0", "13.2", "0.1.0", "0123456789ab")
RESULTS = Results(
    A40,
    "2026-11-20T10:00:00+00:00",
    False,
    (
        Row("logits/pion", "right", "fine", {"text": 1e-6, "limit": 1e-4}, 1.5),
        Row("train/pion-small/compiled", "measured", "fast", dict(SPEED), 30.0),
        Row("save/pion-small", "measured", "short", dict(SAVE), 2.0),
    ),
)


@pytest.fixture
def raw(tmp_path):
    write_results(tmp_path / "a40.json", RESULTS)
    return json.loads((tmp_path / "a40.json").read_text())


def test_what_was_written_is_read(tmp_path):
    write_results(tmp_path / "a40.json", RESULTS)
    assert read_results(tmp_path / "a40.json") == RESULTS


def test_a_file_is_called_after_its_card():
    assert file_name("NVIDIA A40") == "nvidia-a40.json"
    assert file_name("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb.json"
    assert file_name("../../etc/passwd") == "etc-passwd.json"


def changes():
    """Return attacks by name: what to do to the record, and what the error says."""

    def put(*path):
        *outer, last, value = path

        def change(raw):
            place = raw
            for key in outer:
                place = place[key]
            place[last] = value

        return change

    return {
        "another format": (put("format", 2), "format 1"),
        "an unknown field": (put("more", 1), "more is unknown"),
        "no date": (lambda raw: raw.pop("date"), "date is missing"),
        "a date in words": (put("date", "yesterday"), "date must be a date"),
        "a card without a name": (lambda raw: raw["card"].pop("card"), "cardcard is missing"),
        "a number as the card": (put("card", "card", 7), "must be str"),
        "true for a number": (put("rows", 0, "seconds", True), "no true or false"),
        "rows that are no list": (put("rows", {}), "a list of rows"),
        "too many rows": (put("rows", [0] * (MOST_ROWS + 1)), "a list of rows"),
        "a row that is no object": (put("rows", 0, 5), "must be an object"),
        "an unknown verdict": (put("rows", 0, "verdict", "perhaps"), "must be one of right"),
        "a verdict that is a list": (put("rows", 0, "verdict", ["right"]), "must be one of right"),
        "a measure that is a list": (put("rows", 0, "measures", "text", [1]), "measures.text"),
        "measures that are a list": (put("rows", 0, "measures", [1]), "must be an object"),
        "too many measures": (put("rows", 0, "measures", dict.fromkeys(range(99))), "at most 50"),
        "a text without an end": (put("rows", 0, "words", "x" * 2000), "at most 1000 characters"),
        "a number without an end": (put("card", "memory", 10**30), "a smaller number"),
    }


@pytest.mark.parametrize("attack", changes())
def test_a_damaged_result_is_refused_by_name(raw, tmp_path, attack):
    change, expected = changes()[attack]
    change(raw)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(BadInput) as error:
        read_results(path)
    assert str(path) in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"a": NaN}', b" " * (LARGEST_FILE + 1)]
)
def test_a_file_that_is_no_json_object_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"bad\.json"):
        read_results(path)


# ---------------------------------------------------------------- speeds


def test_speeds_are_those_of_measured_rows():
    assert list(train_speeds(RESULTS)) == [TrainSpeed(**SPEED)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("tokens_per_second", 0.0), ("mfu", -0.1), ("seq_len", 2048.5), ("dtype", None), ("mfu", "1")],
)
def test_a_speed_that_makes_no_sense_is_no_speed(name, value):
    row = copy.deepcopy(RESULTS.rows[1])
    row.measures[name] = value
    assert list(train_speeds(Results(A40, RESULTS.date, False, (row,)))) == []


# ---------------------------------------------------------------- what ships with Pion


def test_every_committed_result_is_of_a_gpu_and_called_after_it():
    for path in (REPOSITORY / "benchmarks" / "results" / "bench").glob("*.json"):
        found = read_results(path)
        assert path.name == file_name(found.card.card)
        assert found.card.capability is not None
        assert not found.tiny


def test_committed_results_are_found_in_a_checkout_and_in_an_installed_package(
    monkeypatch, tmp_path
):
    """In a wheel, the folder is inside the package (pyproject.toml)."""
    checkout, installed = tmp_path / "checkout", tmp_path / "installed"
    for folder in (checkout, installed):
        folder.mkdir()
        write_results(folder / "nvidia-a40.json", RESULTS)
    monkeypatch.setattr(card, "_CHECKOUT", checkout)
    monkeypatch.setattr(card, "_INSTALLED", tmp_path / "absent")
    assert card.shipped_results() == [checkout / "nvidia-a40.json"]
    monkeypatch.setattr(card, "_INSTALLED", installed)
    assert card.shipped_results() == [installed / "nvidia-a40.json"]


def test_the_wheel_has_the_committed_results_where_the_package_looks():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    (source, inside), *_ = wheel["sources"].items()
    assert source in wheel["only-include"]
    assert (REPOSITORY / source).is_dir()
    assert REPOSITORY / source == card._CHECKOUT
    assert REPOSITORY / inside == card._INSTALLED

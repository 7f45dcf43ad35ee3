"""The fit of a ladder, read from the ladder's store."""

import dataclasses
import json

import pytest

from pion.errors import BadInput
from pipeline.ladder.prediction import fit
from pipeline.ladder.record import read_fitted
from pipeline.state.stores import FileStore
from tests.pipeline.ladder.made_up import LAWS, ladder

# A ladder that has begun.
RECORD = {"format": 1, "settings": {}, "rungs": []}


@pytest.fixture(scope="module")
def fitted():
    return fit(ladder(LAWS[0]))


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "runs")


def write(store, name, record):
    store.write(f"_ladders/{name}.json", json.dumps(record).encode())


def test_the_fit_comes_back(store, fitted):
    write(store, "small", RECORD | {"fit": dataclasses.asdict(fitted)})
    assert read_fitted(store, "small").fit == fitted


def test_a_ladder_that_is_not_there_says_which_are(store):
    with pytest.raises(BadInput, match=r"there is no ladder 'tall' in .*runs\. To make one: pion"):
        read_fitted(store, "tall")
    write(store, "small", RECORD)
    write(store, "wide", RECORD)
    with pytest.raises(BadInput, match=r"no ladder 'tall' in .*runs, which has small, wide"):
        read_fitted(store, "tall")


def test_a_ladder_without_a_fit_is_said_to_be_unfinished(store):
    write(store, "small", RECORD)
    with pytest.raises(BadInput, match=r"the ladder 'small' in .* is not finished"):
        read_fitted(store, "small")


@pytest.mark.parametrize(
    "record", [[], {}, *(RECORD | {"fit": fit} for fit in (5, [], {}, {"law": 1}))]
)
def test_what_is_no_record_is_said_to_be_damaged(store, record):
    write(store, "small", record)
    with pytest.raises(BadInput, match=r"_ladders/small\.json is damaged"):
        read_fitted(store, "small")


@pytest.mark.parametrize("name", ["", "../demo/HEAD", "a/b", "-x"])
def test_a_name_that_no_ladder_has_is_refused(store, name):
    with pytest.raises(BadInput, match="--ladder"):
        read_fitted(store, name)

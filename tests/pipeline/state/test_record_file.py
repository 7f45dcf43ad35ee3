"""A record is read strictly, and a write whose acknowledgement was lost counts as made."""

from dataclasses import dataclass

import pytest

from pion.errors import BadInput
from pion.untrusted import LARGEST_RECORD
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Damaged, closed_record
from pipeline.state.stores import Conflict, FileStore, StoreError
from tests.support.hooked_store import Hooked, once


@closed_record
@dataclass(frozen=True)
class Note:
    """A record with one text."""

    text: str
    format: int = 1


MINE, OTHER, LATER = Note("mine"), Note("of another"), Note("mine, and more")


def file_in(store):
    return RecordFile(store, "run/note.json", strictly(Note), advice="Write it again.")


@pytest.fixture
def store(tmp_path):
    return Hooked(tmp_path)


ERRORS = [StoreError("write", "it", "no answer", outage=True), Conflict("k", "u")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_write_whose_acknowledgement_is_lost_is_made(store, error):
    store.after = once(error)
    assert file_in(store).swap(MINE, None)
    assert file_in(store).read()[0] == MINE


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_so_is_one_that_another_write_has_followed_if_it_can_be_told(store, error):
    def follow():
        file_in(FileStore(store.folder)).write(LATER)
        raise error

    store.after = once(follow)
    assert file_in(store).swap(MINE, None, lambda present: present.text.startswith("mine"))


def test_a_write_that_was_not_made_is_an_error_or_a_lost_race(store):
    store.before = once(ERRORS[0])
    with pytest.raises(StoreError, match="no answer"):
        file_in(store).swap(MINE, None)
    file_in(FileStore(store.folder)).write(OTHER)
    assert not file_in(store).swap(MINE, None)
    assert file_in(store).read()[0] == OTHER


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"{", "is damaged: .* Write it again"),
        (b'{"format": 1, "text": 5}', "text should be a valid string.* Write it again"),
        (b'{"format": 0, "text": "x"}', "has format version 0, but this pion reads version 1"),
        (b'{"format": 2, "text": "x"}', "has format version 2, but this pion reads version 1"),
        (b'{"format": 1, "text": "x", "mood": "good"}', "has mood in Note"),
    ],
)
def test_what_can_not_be_read_is_refused_or_counts_as_none(store, data, why):
    assert file_in(store).read() == file_in(store).read_if_readable() == (None, None)
    store.write("run/note.json", data)
    with pytest.raises(BadInput, match=rf"run/note\.json.* {why}"):
        file_in(store).read()
    record, version = file_in(store).read_if_readable()
    assert (record, version) == (None, store.read_versioned("run/note.json")[1])
    if b'"format": 1, "text": 5' in data:
        assert file_in(store).read(as_none=Damaged) == (None, version)


def test_the_advice_also_follows_if_not_even_the_bytes_can_be_read(store):
    path = store.folder / "run" / "note.json"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(LARGEST_RECORD + 1)
    for as_none in ((), Damaged):
        with pytest.raises(Damaged, match=r"run/note\.json is damaged: .* Write it again"):
            file_in(store).read(as_none=as_none)
    assert file_in(store).read_if_readable() == (None, None)

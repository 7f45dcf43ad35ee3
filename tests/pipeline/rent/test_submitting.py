"""Of two launches from two machines one rents, though neither's SkyPilot knows of the other's."""

from __future__ import annotations

import json

import pytest

from pion.errors import BadInput
from pipeline.rent.managed import submitting
from pipeline.rent.managed.diagnose import BOOT_SECONDS
from pipeline.rent.managed.submitting import NOTE, announce_rental
from pipeline.state.head import RunState
from pipeline.state.stores import FileStore, Missing
from tests.pipeline.state.conftest import FakeClock, someone


@pytest.fixture
def typing_on(monkeypatch: pytest.MonkeyPatch):
    """Which machine the next command is typed on."""
    return lambda host: monkeypatch.setattr(submitting.socket, "gethostname", lambda: host)


def announced_by(run: RunState) -> str:
    return str(json.loads(run.store.read(run.key(NOTE)))["host"])


def test_while_a_machine_boots_no_other_computer_rents_one(
    run: RunState, time: FakeClock, typing_on
) -> None:
    typing_on("desk")
    announce_rental(run, run.read())
    typing_on("laptop")
    time.time += 120
    with pytest.raises(BadInput) as refused:
        announce_rental(run, run.read())
    message = str(refused.value)
    assert "was rented from desk 2 min" in message
    assert f"pion status {run.store.url}/{run.name}" in message
    assert "--force" in message
    assert announced_by(run) == "desk"


def test_the_note_of_a_run_that_does_not_exist_yet_makes_no_run(tmp_path, typing_on) -> None:
    new = RunState(FileStore(tmp_path / "runs"), "new")
    typing_on("desk")
    announce_rental(new, None)
    assert new.read() is None
    typing_on("laptop")
    with pytest.raises(BadInput, match="was rented from desk"):
        announce_rental(new, None)


def test_the_computer_that_rented_may_rent_again(run: RunState, typing_on) -> None:
    typing_on("desk")
    announce_rental(run, run.read())
    announce_rental(run, run.read())  # its SkyPilot knows what became of the first


def test_once_a_machine_has_claimed_the_run_its_owner_decides(run: RunState, typing_on) -> None:
    typing_on("desk")
    announce_rental(run, run.read())
    run.claim(someone()).release()
    typing_on("laptop")
    announce_rental(run, run.read())
    assert announced_by(run) == "laptop"


def test_a_machine_that_never_came_is_not_waited_for_without_end(
    run: RunState, time: FakeClock, typing_on
) -> None:
    typing_on("desk")
    announce_rental(run, run.read())
    typing_on("laptop")
    time.time += BOOT_SECONDS
    announce_rental(run, run.read())


def test_a_person_who_called_it_off_there_can_say_so(run: RunState, typing_on) -> None:
    typing_on("desk")
    announce_rental(run, run.read())
    typing_on("laptop")
    announce_rental(run, run.read(), force=True)
    assert announced_by(run) == "laptop"


@pytest.mark.parametrize("text", [b"", b"{}", b'{"format": 1, "at": "soon", "host": 3}'])
def test_a_note_that_can_not_be_read_is_in_nobodys_way(run: RunState, text: bytes) -> None:
    run.store.write(run.key(NOTE), text)
    announce_rental(run, run.read())


def test_of_two_at_the_same_instant_one_rents(
    run: RunState, typing_on, monkeypatch: pytest.MonkeyPatch
) -> None:
    typing_on("desk")
    announce_rental(run, run.read())
    typing_on("laptop")

    def as_before(store: FileStore, key: str) -> tuple[bytes, str]:
        raise Missing(key, store.url)

    monkeypatch.setattr(FileStore, "read_versioned", as_before)
    with pytest.raises(BadInput, match="is being rented by another process at this moment"):
        announce_rental(run, None)
    assert announced_by(run) == "desk"

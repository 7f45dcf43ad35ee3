"""Of two launches from two machines only one rents, although neither SkyPilot knows the other."""

import contextlib
import dataclasses
import json

import pytest

from pion.errors import BadInput, Fenced, Interrupted, NotDurable, PionError, Stopped
from pipeline.commands.status import show_statuses
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.rent.managed.request import announce_rental, announced, note_of
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import (
    NOTE,
    over_unless_interrupted,
    read_rental_note,
    withdraw_rental_note,
)
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, Missing
from pipeline.state.stores.errors import error_from_json, error_to_json
from tests.support.states import someone


def from_host(host, run, launch_id):
    """Return the note of a rental that the computer `host` submits now."""
    note = note_of(run, run.read(), launch_id=launch_id, rented_from=f"hash of {host}")
    return dataclasses.replace(note, host=host)


def announced_by(run):
    return str(json.loads(run.store.read(run.key(NOTE)))["host"])


def of_a_worker(error):
    """Return the error as it comes back from a Ray worker."""
    return error_from_json(error_to_json(error))


@pytest.fixture(autouse=True)
def rented_from_desk(run):
    """Let the run be rented from the desk as `desk-1`."""
    announce(run, "desk")


def announce(run, host="laptop", **more):
    """Announce a rental from that computer, as `host-1`."""
    announce_rental(run, from_host(host, run, f"{host}-1"), **more)


def is_refused(run, *words, **more):
    """Assert that the laptop can't rent, and is told so in these words."""
    with pytest.raises(BadInput) as refused:
        announce(run, **more)
    for word in ("was rented from desk", *words):
        assert word in str(refused.value)
    assert announced_by(run) == "desk"


@pytest.mark.parametrize("moving", [False, True], ids=["launch", "hop"])
def test_while_a_machine_boots_no_other_computer_rents_one_unless_forced(run, time, moving):
    time.time += 120
    status = f"pion status {run.store.url}/{run.name}"
    words = "was rented from desk 2 min", "has not claimed the run yet", status, "--force"
    is_refused(run, *words, moving=moving)
    announce(run, moving=moving, force=True)
    assert announced_by(run) == "laptop"


def test_while_a_lost_machine_is_replaced_no_other_computer_rents_one(run, time):
    claim_run(run, someone()).release()  # as a machine does before it is taken away
    time.time += 3 * 24 * 3600.0  # there may be no machine for days
    ago = "was rented from desk 3 d 0 h ago, and that rental is not over"
    is_refused(run, ago, f"pion hop {run.store.url}/{run.name} --on SKY", "--force")


@pytest.mark.parametrize("error", [BadInput("the task is refused"), PionError("timed out")])
def test_the_note_of_a_rental_is_withdrawn_only_if_nothing_was_rented_for_sure(run, error):
    with pytest.raises(type(error)), announced(run, from_host("desk", run, "desk-2")):
        raise error
    note, _ = read_rental_note(run)
    assert note.launch_id == ("desk-1" if isinstance(error, BadInput) else "desk-2")


def test_status_says_who_rents_until_that_is_over(run, capsys):
    show_statuses([f"{run.store.url}/{run.name}"], as_json=False)
    assert "\nmachines: rented from desk since " in capsys.readouterr().out
    withdraw_rental_note(run, "desk-1")
    show_statuses([f"{run.store.url}/{run.name}"], as_json=False)
    assert "machines: rented from" not in capsys.readouterr().out


def test_a_hop_from_another_computer_takes_a_run_from_a_rental_that_was_up(run):
    claim_run(run, someone()).release()
    announce(run, moving=True)
    assert announced_by(run) == "laptop"
    withdraw_rental_note(run, "desk-1")  # the machine that handed over ends, and its rental with it
    assert announced_by(run) == "laptop"
    assert not json.loads(run.store.read(run.key(NOTE)))["over"]


def test_the_note_of_a_run_that_does_not_exist_yet_makes_no_run(tmp_path):
    new = RunState(FileStore(tmp_path / "runs"), "new")
    announce(new, "desk")
    assert new.read() is None
    is_refused(new)


def test_the_computer_that_rented_may_rent_again(run):
    announce_rental(run, from_host("desk", run, "desk-2"))  # its SkyPilot knows the first one
    note, _ = read_rental_note(run)
    assert note.launch_id == "desk-2"


# How a process of a rental, or another, ends, and whether anybody may rent then.
INTERRUPTED = Interrupted("preempted"), of_a_worker(Interrupted("preempted")), KeyboardInterrupt()
ENDED = (
    None, Stopped("asked to"), BadInput("no"), ValueError("a bug"), of_a_worker(NotDurable("no"))
)  # fmt: skip
ENDINGS = [
    *((ending, "desk-1", True) for ending in ENDED),
    *((ending, by, False) for ending in INTERRUPTED for by in ("desk-1", "another", None)),
    (None, "another", False),
    (None, None, False),
]


@pytest.mark.parametrize(("ending", "launch_id", "over"), ENDINGS)
def test_a_rental_is_over_once_its_process_has_ended_and_was_not_interrupted(
    run, ending, launch_id, over
):
    expected = contextlib.nullcontext() if ending is None else pytest.raises(type(ending))
    with expected, over_unless_interrupted(run, launch_id):
        if ending is not None:
            raise ending
    if over:
        announce(run)
        assert announced_by(run) == "laptop"
    else:
        is_refused(run)


@pytest.mark.parametrize("by", ["desk-1", "a stranger's"])
def test_a_rental_that_is_fenced_is_over_unless_by_the_machine_that_it_rented_next(run, by):
    claim_run(run, someone(launch_id=by))
    with pytest.raises(Fenced), over_unless_interrupted(run, "desk-1"):
        raise Fenced("taken over")
    note, _ = read_rental_note(run)
    assert (note is not None) == (by == "desk-1")


def test_a_hop_does_not_wait_forever_for_a_machine_that_never_came(run, time):
    time.time += BOOT_SECONDS
    announce(run, moving=True)


@pytest.mark.parametrize(
    "text", [b"", b"{}", b'{"format": 1, "at": "soon", "host": 3}', b'{"format": 1, "at": 3.5}']
)
def test_a_note_that_can_not_be_read_prevents_no_rental(run, text):
    run.store.write(run.key(NOTE), text)
    withdraw_rental_note(run, "desk-1")
    announce(run)
    assert announced_by(run) == "laptop"


def test_of_two_at_the_same_instant_one_rents(run, monkeypatch):

    def as_before(store, key):
        raise Missing(key, store.url)

    note = from_host("laptop", run, "laptop-1")
    monkeypatch.setattr(FileStore, "read_versioned", as_before)
    with pytest.raises(BadInput, match="another process is renting a machine for demo at this"):
        announce_rental(run, note)
    assert announced_by(run) == "desk"

"""The names of rentals."""

import threading

import pytest

from pion.errors import BadInput
from pipeline.rent.managed import names
from pipeline.rent.managed.names import refuse_unrented, rental_name
from pipeline.state.claim import claim_run
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.states import someone
from tests.support.waiting import PATIENCE_SECONDS


def test_a_managed_job_is_named_for_its_run_alone():
    name = rental_name("s3://bucket/runs", "pion-small")
    assert name.startswith("pion-pion-small-")
    assert rental_name("s3://bucket/runs/", "pion-small") == name
    assert rental_name("s3://bucket/other", "pion-small") != name
    assert rental_name("s3://bucket/runs", "pion-Small") != name


def test_any_run_name_makes_a_name_that_skypilot_accepts():
    from sky.utils.common_utils import check_cluster_name_is_valid

    for run in ("a", "a+b@c=d", "_", "x" * 100, "Größe"):
        name = rental_name("s3://bucket", run)
        check_cluster_name_is_valid(name)
        assert len(name) <= 54


def rented(folder):
    """Return the address of a run that was rented for."""
    run = RunState(FileStore(folder / "runs"), "rented")
    claim_run(run, someone()).heartbeat.stop()
    write_rental_note(run, RentalNote(0.0, "desk", "0123abcd", "rented", 1), None)
    return run.url


def test_a_store_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    over = threading.Event()

    def hang(run):
        assert over.wait(PATIENCE_SECONDS)
        return False

    monkeypatch.setattr(names, "STORE_SECONDS", 0.1)
    monkeypatch.setattr(names, "never_rented", hang)
    refuse_unrented(rented(tmp_path))
    over.set()


def test_only_a_run_that_was_never_rented_for_is_refused(tmp_path):
    other = RunState(FileStore(tmp_path / "runs"), "other")
    claim_run(other, someone()).heartbeat.stop()
    with pytest.raises(BadInput, match=r"rented nothing for .*/other"):
        refuse_unrented(other.url)
    refuse_unrented(rented(tmp_path))

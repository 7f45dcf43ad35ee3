"""Rentals with a deadline and without one."""

import pytest

from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.notes.rental_note import RentalNote, write_rental_note
from tests.pipeline.rent.managed.keep.day import MIXED, Day, Rental
from tests.support.fake_provider import ME
from tests.support.states import read
from tests.support.two_markets import TwoMarkets, launched_on_spot


@pytest.fixture
def day(sky_home, run, time, said):
    """A rental that waits for spot, and a note that says who rents."""
    machines = read_sky_yaml(sky_home.yaml(MIXED))
    note = RentalNote(time.time, "desk", ME, "first", read(run).epoch)
    write_rental_note(run, note, None)
    return Day(TwoMarkets(run, time, launched_on_spot(machines, time)), run, time, said)


@pytest.fixture
def rental(watcher, provider, run, time, said):
    return Rental(watcher, provider, run, time, said)

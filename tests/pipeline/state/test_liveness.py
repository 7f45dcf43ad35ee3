"""An owner lives while its last sign of life is young, or its process is seen on this machine."""

import dataclasses

import pytest

from pipeline.state.liveness import Unchanged, is_silent, liveness
from tests.hostile.hostile_run import NOW, full_head

OWNED = full_head()  # its last commit was at NOW


@pytest.mark.parametrize(
    ("beat_at", "running", "later", "life"),
    [
        (NOW + 5, None, 64, "alive"),
        (NOW + 5, None, 65, "silent"),
        (None, None, 59, "alive"),  # it may not have beaten yet
        (None, None, 60, "silent"),
        (NOW + 5, False, 6, "dead"),
        (NOW + 5, True, 9999, "alive"),  # its store may be down
    ],
)
def test_an_owner_lives_as_long_as_it_shows_life(beat_at, running, later, life):
    found = liveness(OWNED, beat_at, NOW + later, silence=60.0, running=running)
    assert found.life is life
    assert found.at == (NOW if beat_at is None else beat_at)


def test_a_released_run_has_no_owner():
    head = dataclasses.replace(OWNED, owner=None)
    assert liveness(head, NOW, NOW, silence=60.0).life == "nobody"


def test_who_has_never_shown_life_is_silent():
    assert is_silent(None, NOW, 60.0)


def test_a_sign_that_changes_is_new_whatever_any_clock_says(time):
    unchanged = Unchanged(time.clock())
    assert unchanged.seconds("first") == 0.0
    time.sleep(30.0)
    assert unchanged.seconds("first") == 30.0
    assert unchanged.seconds("second") == 0.0

"""How many workers a job asks for: a number, or the fewest and the most."""

from tests.support.jobs import tiny_job


def test_two_numbers_are_the_fewest_and_the_most():
    elastic = tiny_job(hardware__workers=[2, 16]).hardware
    assert (elastic.elastic, elastic.min_workers, elastic.max_workers) == (True, 2, 16)
    assert elastic.workers_in_words == "[2, 16]"
    fixed = tiny_job(hardware__workers=3).hardware
    assert (fixed.elastic, fixed.min_workers, fixed.max_workers) == (False, 3, 3)
    unset = tiny_job().hardware
    assert (unset.elastic, unset.min_workers, unset.max_workers) == (False, None, None)

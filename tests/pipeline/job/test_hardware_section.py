"""How many workers a job asks for: a number, or the fewest and the most."""

import pytest

from tests.support.jobs import refusal, tiny_job

NO_NUMBER = "not a number of workers, nor the fewest and the most workers, such as [2, 16]"


@pytest.mark.parametrize(
    ("workers", "words"),
    [
        ([16, 2], "hardware.workers: [16, 2]: the fewest workers come first. Write [2, 16]"),
        ([0, 4], "hardware.workers: [0, 4]: at least 1 worker trains. Write [1, 4]"),
        ([-3, -2], "hardware.workers: [-3, -2]: at least 1 worker trains. Write [1, 1]"),
        ([2], f"hardware.workers: [2]: {NO_NUMBER}"),
        ([1, 2, 3], f"hardware.workers: [1, 2, 3]: {NO_NUMBER}"),
        ([True, 2], f"hardware.workers: [True, 2]: {NO_NUMBER}"),
        ({"min": 2}, f"hardware.workers: {{'min': 2}}: {NO_NUMBER}"),
        ("many", f"hardware.workers: 'many': {NO_NUMBER}"),
        (True, "hardware.workers: true should be a number"),
        (-1, "hardware.workers: -1: should be at least 0"),
        (4097, "hardware.workers: 4097 should be at most 4,096"),
        ([2, 4097], "hardware.workers.1: 4097 should be at most 4,096"),
    ],
)
def test_what_is_no_number_of_workers_is_refused_with_its_line(tmp_path, workers, words):
    message = refusal(tmp_path, hardware__workers=workers)
    assert "job.yaml has 1 mistake; nothing was started\n  line " in message
    assert words in message


@pytest.mark.parametrize("workers", [0, 1, [1, 4]])
def test_a_model_is_divided_among_two_workers_or_more(tmp_path, workers):
    message = refusal(tmp_path, hardware__workers=workers, hardware__fsdp=True)
    assert f"workers is {workers}. Remove fsdp, or set workers to at least 2" in message


def test_two_numbers_are_the_fewest_and_the_most():
    elastic = tiny_job(hardware__workers=[2, 16]).hardware
    assert (elastic.elastic, elastic.min_workers, elastic.max_workers) == (True, 2, 16)
    assert elastic.workers_in_words == "[2, 16]"
    fixed = tiny_job(hardware__workers=3).hardware
    assert (fixed.elastic, fixed.min_workers, fixed.max_workers) == (False, 3, 3)
    unset = tiny_job().hardware
    assert (unset.elastic, unset.min_workers, unset.max_workers) == (False, None, None)

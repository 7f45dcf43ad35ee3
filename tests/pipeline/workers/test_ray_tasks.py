"""Tasks of a private Ray: results in order, mistakes, a process that dies, and the end of Ray."""

import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from pion.errors import BadInput, PionError
from pipeline.data.encode_piece import Reading, encode_piece
from pipeline.data.pieces import cut_pieces
from pipeline.data.prepared import SPLITS
from pipeline.data.source_reading import tokenizer_files
from pipeline.machine.child_process import S3
from pipeline.workers.ray_tasks import ray_tasks
from tests.support.piece_corpora import PIECES, corpus_job
from tests.support.waiting import wait_until


def times(factor, item):
    """Multiply. There is no result for 7."""
    if item == 7:
        raise BadInput("lines.jsonl:7 is not valid")
    return factor * item


def dies_once(folder, item):
    """Kill this process, but not a second time."""
    seen = Path(folder, str(item))
    if item == 2 and not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def threads(shared, item):
    """Return how many threads the tokenizers may use."""
    return os.environ.get("RAYON_NUM_THREADS")


def process(shared, item):
    """Return which process does the work."""
    return os.getpid()


def process_and_item(shared, item):
    """Return which process does the work, and which it is."""
    return os.getpid(), item


@pytest.fixture(scope="module")
def tasks():
    with ray_tasks() as found:
        wait_for_ray(found)
        yield found


def wait_for_ray(tasks):
    """Wait until other processes do the work."""
    here = [os.getpid()]
    wait_until(lambda: list(tasks.map(process, None, [0])) != here, "Ray to start")


def kill_ray():
    """Kill the process that runs Ray."""
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if "pipeline.workers.ray_task_process" in child.cmdline():
                child.kill()


def test_its_tasks_get_the_secrets_that_they_use_and_no_others(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-bucket")
    monkeypatch.setenv("HF_TOKEN", "hf_never-to-be-seen")
    for uses, is_there in (((), False), (S3, True)):
        with ray_tasks(None, *uses) as tasks:
            file = Path(f"/proc/{tasks._process.pid}/environ")
            wait_until(lambda file=file: "PATH=" in file.read_text(), "the program to be loaded")
            environment = file.read_text()
        assert ("a-secret-of-the-bucket" in environment) == is_there
        assert "hf_never-to-be-seen" not in environment


def test_until_ray_has_started_this_process_does_the_work():
    with ray_tasks() as tasks:
        assert list(tasks.map(process, None, [1, 2])) == [os.getpid()] * 2
        results = tasks.map(times, 3, range(6, 10_000))
        assert next(results) == 18
        with pytest.raises(BadInput, match=r"^lines\.jsonl:7 is not valid$"):
            next(results)


def test_without_a_ray_that_ended_while_it_started_this_process_goes_on():
    said = []
    with ray_tasks(said.append) as tasks:
        results = tasks.map(times, 3, itertools.count(8))
        assert next(results) == 24
        kill_ray()
        assert next(result for result in results if said) > 24
        assert next(results) % 3 == 0
    assert len(said) == 1
    assert said[0].startswith("Ray, which prepares the data, has ended: ")
    assert said[0].endswith(". This process does its work")


@pytest.mark.soak
def test_once_ray_has_started_its_processes_go_on_in_the_order_of_the_items():
    with ray_tasks() as tasks:
        seen = []
        places = itertools.takewhile(lambda item: len(set(seen)) < 2, itertools.count())
        for item in tasks.map(process_and_item, None, places):
            seen.append(item[0])
            assert item[1] == len(seen) - 1
        assert seen[0] == os.getpid() != seen[-1]
        assert seen == sorted(seen, key=lambda found: found != os.getpid())


@pytest.mark.soak
def test_results_come_in_order_and_items_are_taken_as_there_is_room(tasks):
    taken = iter(range(100, 1000))
    results = tasks.map(times, 3, taken)
    assert [next(results) for _ in range(20)] == [3 * item for item in range(100, 120)]
    assert next(taken) < 500
    assert list(results)[-1] == 3 * 999


@pytest.mark.soak
def test_a_mistake_is_raised_as_it_is_and_the_next_work_begins_anew(tasks):
    results = tasks.map(times, 1, range(50))
    assert [next(results) for _ in range(7)] == list(range(7))
    with pytest.raises(BadInput, match=r"^lines\.jsonl:7 is not valid$"):
        next(results)
    assert list(tasks.map(times, 2, [1, 2])) == [2, 4]


@pytest.mark.soak
def test_a_task_whose_process_dies_is_done_again(tasks, tmp_path):
    assert list(tasks.map(dies_once, str(tmp_path), range(6))) == list(range(6))
    assert (tmp_path / "2").exists()


@pytest.mark.soak
def test_a_piece_is_encoded_elsewhere_as_it_is_here(tasks, tmp_path):
    job = corpus_job("jsonl", tmp_path)
    (source,) = job.data.sources
    reading = Reading(source, "data.sources.0", 100_000, 0.1, None, tokenizer_files(PIECES))
    pieces = cut_pieces(source, sorted((tmp_path / "text").glob("*.jsonl")), 100_000, 9000)
    for there, piece in zip(tasks.map(encode_piece, reading, pieces), pieces, strict=True):
        here = encode_piece(reading, piece)
        for split in SPLITS:
            assert all(map(np.array_equal, there.joined[split], here.joined[split]))


@pytest.mark.soak
def test_each_task_has_one_thread(tasks):
    assert set(tasks.map(threads, None, range(4))) == {"1"}


@pytest.mark.soak
def test_the_end_of_ray_is_an_error_that_says_what_is_safe():
    with ray_tasks() as tasks:
        wait_for_ray(tasks)
        results = tasks.map(times, 3, range(8, 10_000))
        assert next(results) == 24
        kill_ray()
        with pytest.raises(PionError, match=r"Ray, which prepares .* Run the same command again"):
            list(results)

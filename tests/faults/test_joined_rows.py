"""Joined rows: whatever dies while an owner joins its files, every reader sees every row once."""

import contextlib
import re
import tracemalloc

import pytest

from pipeline.state.rows import join_segments, thin
from pipeline.state.rows.join_segments import Joiner
from pipeline.state.rows.metrics import MetricsLog, read_all_metrics
from pipeline.state.rows.row_types import Unreadable
from pipeline.state.rows.thin import ThinReader, step_count
from pipeline.state.stores import FileStore, Missing, StoreError
from tests.faults.faulty_store import Crash, FaultyStore, crash, fail

FOLDER = "run/metrics/pretrain/"
# An earlier owner flushed 17 times, and the present one 31 times; 5 files are joined at once.
FLUSHES, PARTS = {1: 17, 2: 31}, 5
STEPS = list(range(sum(FLUSHES.values())))

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(autouse=True)
def few_parts(monkeypatch):
    monkeypatch.setattr(join_segments, "PARTS", PARTS)
    monkeypatch.setattr(join_segments, "DELETES", 4)
    # Each joined object has a file of thinned rows, of few rows.
    monkeypatch.setattr(thin, "WORTH", 10)
    monkeypatch.setattr(thin, "RANGES", 1)
    monkeypatch.setattr(thin, "TAIL", 1)
    monkeypatch.setattr(thin, "MOST_ROWS", 10)


def write_rows(store):
    steps = iter(STEPS)
    for epoch, flushes in FLUSHES.items():
        log = MetricsLog(store, "run", "pretrain", epoch)
        for _ in range(flushes):
            log.append({"step": next(steps), "loss": 1.0})
            log.flush()


@pytest.fixture
def store(tmp_path):
    store = FileStore(tmp_path / "runs")
    write_rows(store)
    return store


def join_all(store, epoch=2):
    for _ in step_until_done(Joiner(store, FOLDER, epoch, lambda: None)):
        pass


def step_until_done(joiner):
    """Step until there is nothing to do, and yield after each step. Never without end."""
    for _ in range(2 * len(STEPS)):
        if not joiner.step():
            return
        yield
    raise AssertionError("the files are joined without end")


def steps_in(store):
    """Return the steps that are read; thinned rows stand for as many, and end with the last."""
    unreadable = Unreadable()
    steps = [row["step"] for row in read_all_metrics(store, "run", "pretrain", unreadable)]
    rows = ThinReader(store, FOLDER, unreadable).read()
    assert sum(map(step_count, rows)) == len(steps)
    assert rows[-1]["step"] == steps[-1]
    assert unreadable.count == 0
    return steps


def names(store):
    """Return the names of the files without their sizes."""
    return [re.sub(r"-\d+\.", ".", e.key.removeprefix(FOLDER)) for e in store.list(FOLDER)]


def test_files_are_joined_in_two_levels_and_their_parts_deleted(store):
    join_all(store)
    assert names(store) == [
        "1/000000-000016-2.jsonl",  # all of an earlier owner
        "1/000000-000016-2.thin",
        "2/000000-000024-2.jsonl",
        "2/000000-000024-2.thin",
        "2/000025-000029-1.jsonl",
        "2/000025-000029-1.thin",
        "2/000030.jsonl",
    ]
    assert steps_in(store) == STEPS


def ways_to_die():
    """Yield four ways: by default, each at every 28th operation; under soak, at every 7th."""
    ways = [(happen, when) for happen in (crash, fail) for when in ("before", "after")]
    for number, (happen, when) in enumerate(ways):
        name = f"{happen.__name__}-{when}"
        yield pytest.param(happen, when, 1 + 7 * number, 28, id=name)
        yield pytest.param(happen, when, 1, 7, id=f"{name}-more", marks=pytest.mark.soak)


@pytest.mark.parametrize(("happen", "when", "first", "every"), ways_to_die())
def test_an_owner_may_die_at_every_operation(tmp_path, happen, when, first, every):
    counted = FaultyStore(FileStore(tmp_path / "unbroken"))
    write_rows(counted.inner)
    join_all(counted)
    assert len(counted.operations) > 28
    for k in range(first, len(counted.operations) + 1, every):
        store = FileStore(tmp_path / str(k))
        write_rows(store)
        with contextlib.suppress(Crash, StoreError):
            join_all(FaultyStore(store, k, when, happen))
        assert steps_in(store) == STEPS
        join_all(store, epoch=3)
        assert steps_in(store) == STEPS
        assert len([name for name in names(store) if name.endswith(".jsonl")]) <= 4


@pytest.mark.parametrize("pause", [1, 4, 23])
def test_a_page_that_looks_in_between_is_told_every_row_once(store, pause):
    reader = ThinReader(store, FOLDER, Unreadable())
    assert sum(map(step_count, reader.read())) == len(STEPS)
    looks = iter(range(10**6))
    log = MetricsLog(store, "run", "pretrain", 2)
    later = iter(range(len(STEPS), len(STEPS) + 40))
    written = []

    def look():
        if next(looks) % pause == 0:
            assert sum(map(step_count, reader.read())) == len(STEPS) + len(written)
        elif (step := next(later, None)) is not None:
            written.append(step)
            log.append({"step": step, "loss": 1.0})
            log.flush()

    watched = FaultyStore(store)
    watched.look = look
    join_all(watched)
    assert steps_in(store) == [*STEPS, *written]
    assert sum(map(step_count, reader.read())) == len(STEPS) + len(written)


def test_files_that_are_joined_while_a_reader_reads_them_are_read_once(store):
    class JoinedMeanwhile(FileStore):
        first = True

        def read(self, key, limit=0):
            if self.first:
                self.first = False
                join_all(store)
            return super().read(key, limit)

    for read in (thin_rows_and_unreadable, rows_and_unreadable):
        rows, unreadable = read(JoinedMeanwhile(store.folder))
        assert sum(map(step_count, rows)) == len(STEPS)
        assert unreadable.count == 0
        for entry in store.list():
            store.delete(entry.key)
        write_rows(store)


def test_a_file_that_is_listed_and_never_there_counts_as_unreadable(store):
    class Forgets(FileStore):
        def read(self, key, limit=0):
            if key.endswith("1/000000.jsonl"):
                raise Missing(key, self.url)
            return super().read(key, limit)

    rows, unreadable = rows_and_unreadable(Forgets(store.folder))
    assert [row["step"] for row in rows] == STEPS[1:]
    assert unreadable.files == 1


def test_a_part_next_to_the_object_that_contains_it_counts_once_at_both_levels(store):
    parts = {entry.key: store.read(entry.key) for entry in store.list(FOLDER)}
    joiner = Joiner(store, FOLDER, 2, lambda: None)
    for _ in step_until_done(joiner):
        parts |= {entry.key: store.read(entry.key) for entry in store.list(FOLDER)}
    join_all(store)
    assert len(store.list(FOLDER)) < len(parts) / 3
    for key, content in parts.items():  # as a copy of the store that began before the parts went
        store.write(key, content)
        assert steps_in(store) == STEPS


def test_a_joined_object_that_was_cut_short_is_named_if_its_parts_are_gone(store):
    join_all(store)
    joined = [e.key for e in store.list(FOLDER) if re.search(r"-\d-\d+\.jsonl", e.key)]
    assert [re.search(r"\d/\d+-\d+", key)[0] for key in joined] == [
        "1/000000-000016",
        "2/000000-000024",
        "2/000025-000029",
    ]
    for key, others in zip(joined, ([*range(17, 48)], [*range(17), *range(42, 48)])):
        whole = store.read(key)
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            store.write(key, whole[:size])
            for found in (rows_and_unreadable(store), thin_rows_and_unreadable(store)):
                rows, unreadable = found
                assert sum(map(step_count, rows)) == len(others)
                assert {row["step"] for row in rows} <= {*others}
                assert f"in {store.url}/{key}. Of 1 file, all rows" in str(unreadable.describe())
        store.write(key, whole)
        assert steps_in(store) == STEPS


def damages(whole):
    """Yield what may be there instead of a file of thinned rows."""
    # Without the end of its last line, it is whole.
    yield from (whole[:size] for size in range(len(whole) - 1))
    first, *rows = whole.splitlines()
    for lines in (
        [first, *rows, rows[-1].replace(b"1", b"2")],
        [b"[" * 100_000, *rows],
        [first, *(b'{"step": "x"}' for _ in rows)],
        [first, *rows[:-1], b'{"stands_for": {"steps": -1}}'],
    ):
        yield b"\n".join(lines)


def test_damaged_thinned_rows_are_not_used(store):
    join_all(store)
    thin_files = [e.key for e in store.list(FOLDER) if e.key.endswith(".thin")]
    assert len(thin_files) == 3
    for content in damages(store.read(thin_files[0])):
        store.write(thin_files[0], content)
        rows, unreadable = thin_rows_and_unreadable(store)
        assert sum(map(step_count, rows)) == len(STEPS)
        assert unreadable.count == 0


def rows_and_unreadable(store):
    unreadable = Unreadable()
    return read_all_metrics(store, "run", "pretrain", unreadable), unreadable


def thin_rows_and_unreadable(store):
    unreadable = Unreadable()
    return ThinReader(store, FOLDER, unreadable).read(), unreadable


def test_a_joined_object_that_was_cut_short_is_joined_again_from_its_parts(store):
    joiner = Joiner(store, FOLDER, 2, lambda: None)
    joiner.step()
    (joined,) = (e.key for e in store.list(FOLDER) if re.search(r"-1-\d+\.jsonl", e.key))
    store.write(joined, store.read(joined)[:-9])
    unreadable = Unreadable()
    rows = read_all_metrics(store, "run", "pretrain", unreadable)
    assert [row["step"] for row in rows] == STEPS  # its parts are still there
    assert unreadable.count == 1
    join_all(store)  # an owner joins the parts again, under the right name
    assert [row["step"] for row in read_all_metrics(store, "run", "pretrain")] == STEPS


def test_an_owner_that_has_lost_the_run_joins_and_deletes_nothing(store):
    def lost():
        raise StoreError("own", "run", "another process has taken over")

    before = names(store)
    with pytest.raises(StoreError):
        Joiner(store, FOLDER, 2, lost).step()
    assert names(store) == before


def test_a_part_that_can_not_be_read_is_left_alone(store):
    class Short(FileStore):
        def read(self, key, limit=0):
            content = super().read(key, limit)
            return content[:-3] if key.endswith("1/000002.jsonl") else content

    join_all(Short(store.folder))
    assert "1/000002.jsonl" in names(store)
    assert steps_in(store) == STEPS


def test_a_name_that_claims_a_billion_flushes_costs_nothing(store):
    content = b'{"step": 99, "epoch": 2, "at": 1.0}\n'
    store.write(f"{FOLDER}2/000040-999999999-1-{len(content)}.jsonl", content)
    reader = ThinReader(store, FOLDER, Unreadable())
    tracemalloc.start()
    assert len(reader.read()) == len(STEPS) + 1
    # A folder is read through a buffer of the largest file; a billion numbers are 60 GB.
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e9

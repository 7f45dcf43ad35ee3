"""Every kind of source in pieces by Ray: the shards of one process, for any number of workers, also
if they are killed and the machine is lost."""

import hashlib
import json
import shutil
import signal
import subprocess
from contextlib import nullcontext, suppress

import psutil
import pytest

from pion.data.documents import file_to_documents
from pipeline.data import conversations_to_rows
from pipeline.data.tasks import InThisProcess
from pipeline.stages.prepare import PrepareOptions, prepare_part
from pipeline.state.stores import open_store
from pipeline.state.workspace import FILES
from pipeline.workers.ray_tasks import ray_tasks
from tests.pipeline.workers.test_ray_tasks import wait_for_ray
from tests.runs.test_ray_node import nodes
from tests.support.bucket_files import BucketFiles
from tests.support.corpora import write_corpus
from tests.support.meddling import Meddling
from tests.support.piece_corpora import (
    BUFFER,
    KINDS,
    PART_BYTES,
    PIECES,
    TIMES,
    corpus_job,
    digest_of,
    hashes_of,
)
from tests.support.ray_cluster import ray_cluster
from tests.support.waiting import LONG_SECONDS, rest_of, wait_until
from tests.support.whole_runs import ends_with, start, wait_for

__all__ = ["nodes"]

GOLDEN = json.loads((PIECES / "golden_large.json").read_text())
KILLS = 3
# What is done again after a kill, at most: pieces of the two shards that are being filled.
AGAIN = dict.fromkeys(KINDS, 3) | {"sft": 14}


def with_small_parts(folder):
    """Let the tasks of Ray read a text in small parts, so that a small text has many pieces."""
    small = Meddling(folder, inside="ray")
    small.run(f"import_module('{file_to_documents.__name__}').PART_BYTES = {PART_BYTES}")
    return small


def a_25th(folder):
    """Return the bytes of a piece of the corpus in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) // 25


class Counting:
    """Lets `tasks` do the work, and counts what was encoded or packed."""

    def __init__(self, tasks):
        self.done, self._tasks = 0, tasks

    def map(self, work, shared, items):
        for result in self._tasks.map(work, shared, items):
            self.done += work.__name__ in ("encode_piece", "pack_buffer")
            yield result


@pytest.mark.soak
@pytest.mark.parametrize("nodes", [(), (1,), (1, 1), (2,), (3,)], ids=str)
def test_the_shards_are_those_of_one_process_for_any_number_of_workers_and_nodes(
    nodes, tmp_path, monkeypatch
):
    monkeypatch.setattr(file_to_documents, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(conversations_to_rows, "BUFFER", BUFFER)
    found = {}

    def prepare(tasks):
        for kind in GOLDEN:
            folder, counting = tmp_path / kind, Counting(tasks)
            folder.mkdir()
            job = corpus_job(kind, folder, sft=kind == "sft", times=TIMES)
            size = a_25th(folder / "text")
            pieces = PrepareOptions(lambda: nullcontext(counting), least=0, piece_bytes=size)  # noqa: B023
            part = "sft" if kind == "sft" else "pretrain"
            prepare_part(job, part, folder / "data", lambda m: None, how=pieces)
            found[kind] = digest_of(hashes_of(folder / "data"))
            assert counting.done >= 20, kind

    if not nodes:
        prepare(InThisProcess())
    else:
        environment = with_small_parts(tmp_path).environment()
        monkeypatch.setenv("PYTHONPATH", environment["PYTHONPATH"])
        with ray_cluster(monkeypatch, *nodes), ray_tasks() as tasks:
            wait_for_ray(tasks)
            prepare(tasks)
    assert found == GOLDEN


# ---------------------------------------------------------------- kills

# Ray does all the work, also the first pieces, unless this says that it need not.
RAY_ALONE = """
import os
from pipeline.workers.ray_tasks import RayTasks
has_started = RayTasks._has_started
def wait_for_ray(self):
    if "RAY_IS_LATE" not in os.environ and not self._started:
        self._pipe.poll(300)
    return has_started(self)
RayTasks._has_started = wait_for_ray
"""
PROGRAM = f"""{RAY_ALONE}
import sys, time
from pathlib import Path
from pion.data.documents import file_to_documents
from pipeline.data import conversations_to_rows
from pipeline.data.piece_rows import PieceRows
from pipeline.data import source_reading
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
source_reading.LEAST_BYTES, source_reading.PIECE_BYTES = 0, PIECES
file_to_documents.PART_BYTES, conversations_to_rows.BUFFER = {PART_BYTES}, {BUFFER}
joined = 0
def slowly(owner, name):
    original = getattr(owner, name)
    def wrapped(*arguments):
        global joined
        while joined >= int(Path("most.txt").read_text()):
            time.sleep(0.02)
        original(*arguments)
        joined += 1
        part = Path("joined.part")
        part.write_text(str(joined))
        part.replace("joined.txt")
    setattr(owner, name, wrapped)
slowly(PieceRows, "_keep")
if __name__ == "__main__":
    from pipeline.cli import main
    sys.exit(main(sys.argv[1:]))
"""


class Machine:
    """A machine that prepares the corpus of a kind for a store, with two workers. The corpus may be
    in a bucket."""

    def __init__(self, kind, folder, store, bucket=None):
        corpus_job(kind, folder, sft=kind == "sft", times=TIMES)
        if kind == "sft":
            write_corpus(folder / "corpus.jsonl")
        self.cache, self._folder, self._store = folder / "cache", folder, open_store(store)
        size = 1_000_000 if kind == "sft" else a_25th(folder / "text")
        self._program = PROGRAM.replace("PIECES", str(size))
        if bucket is not None:
            bucket.let_read(folder / "job.yaml")
            shutil.rmtree(folder / "text")
        self._arguments = (f"store={store}", f"hardware.workers={2 if bucket else 0}")
        self._environment = with_small_parts(folder).environment()
        self._environment["XDG_CACHE_HOME"] = str(self.cache)

    def start(self, most, *overrides, until="prepare", late=False):
        """Start to prepare, or to train too, and join so many pieces. If Ray is `late`, it works
        without it."""
        (self._folder / "joined.txt").unlink(missing_ok=True)
        self.let_join(most)
        environment = self._environment | ({"RAY_IS_LATE": "1"} if late else {})
        job = self._folder / "job.yaml"
        arguments = (*self._arguments, *overrides, "--until", until)
        process = start(job, *arguments, env=environment, program=self._program)
        assert isinstance(process, subprocess.Popen)
        return process

    def let_join(self, most):
        """Let a started process join so many pieces."""
        part = self._folder / "most.part"
        part.write_text(str(most))
        part.replace(self._folder / "most.txt")

    def joined(self):
        """Return how many pieces the last process has joined."""
        path = self._folder / "joined.txt"
        return int(path.read_text()) if path.exists() else 0

    def uploaded(self):
        """Return whether what is finished on this machine is in the store."""
        own = next(self.cache.rglob(".fingerprint")).parent
        here = [*own.rglob("0/*/shard_*.json"), *own.rglob("pieces/*.npz")]
        there = {entry.key.split("/", 3)[-1] for entry in self._store.list("_data/")}
        return {str(path.relative_to(own)) for path in here} <= there

    def pieces_in_store(self):
        """Return what is left in the store of pieces."""
        return [e.key for e in self._store.list("_data/") if "/pieces/" in e.key]

    def digests(self):
        """Return the digest of each finished data in the store."""
        keys = [entry.key for entry in self._store.list("_data/")]
        found = set()
        for folder in (key.removesuffix(FILES) for key in keys if key.endswith(FILES)):
            shards = [key for key in keys if key.startswith(folder) and key.endswith(".npy")]
            hashes = {
                key.removeprefix(folder): hashlib.sha256(self._store.read(key)).hexdigest()
                for key in shards
            }
            found.add(digest_of(hashes))
        return found


def kill_a_task(process):
    """Kill a process of the run's Ray that encodes a piece, if there is one now."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if child.cmdline()[:1] == ["ray::do"]:
                child.kill()
                return True
    return process.poll() is not None


def more(machine, process, most):
    """Return what says whether so many pieces are joined, or the process has ended."""
    return lambda: machine.joined() >= most or process.poll() is not None


@pytest.mark.soak
@pytest.mark.parametrize(("kind", "where"), [*((k, "disk") for k in GOLDEN), ("jsonl", "bucket")])
def test_killed_and_moved_the_shards_are_those_of_one_process(kind, where, tmp_path, s3, s3_store):
    bucket = BucketFiles(s3, tmp_path) if where == "bucket" else None
    machine, total = Machine(kind, tmp_path, s3_store, bucket), 0
    at_once = 40 if kind == "sft" else 6
    for kill in range(KILLS):
        process = machine.start(at_once, late=kill == 0)
        wait_until(more(machine, process, at_once), "the first pieces", seconds=LONG_SECONDS)
        # A process that encodes is killed; the driver continues. Packing 16 conversations takes so
        # little time that no look at the processes would meet it.
        if kill == 1 and kind != "sft":
            machine.let_join(at_once + 5)
            wait_until(lambda: kill_a_task(process), "a task at work", every=0.001)  # noqa: B023
            wait_until(more(machine, process, at_once + 5), "more pieces", seconds=LONG_SECONDS)
        assert process.poll() is None, rest_of(process)
        total += machine.joined()
        if kill == 2:  # the machine is lost
            wait_until(machine.uploaded, "its files to be in the store")
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        if kill == 2:
            shutil.rmtree(machine.cache)
    process = machine.start(1_000_000)
    wait_for(process, "prepare: done")
    ends_with(0, process)
    assert GOLDEN[kind] in machine.digests()
    assert not machine.pieces_in_store()
    total += machine.joined()
    pieces = joined_without_kills(kind, tmp_path)
    print(f"{kind}: {pieces} pieces, {KILLS} kills, {total - pieces} repeated")
    assert pieces >= 20
    assert total - pieces <= KILLS * AGAIN[kind]


def joined_without_kills(kind, folder):
    """Return how many pieces the corpus has."""
    machine = Machine(kind, folder, str(folder / "unbroken"))
    ends_with(0, machine.start(1_000_000, late=True))
    return machine.joined()


@pytest.mark.soak
@pytest.mark.parametrize("where", ["disk", "bucket"])
def test_two_nodes_one_of_which_is_lost_make_the_same_shards(where, tmp_path, s3, s3_store, nodes):
    nodes.add()
    bucket = BucketFiles(s3, tmp_path) if where == "bucket" else None
    machine = Machine("jsonl", tmp_path, s3_store, bucket)
    process = machine.start(4)
    wait_until(more(machine, process, 4), "four pieces", seconds=LONG_SECONDS)
    machine.let_join(1_000_000)
    nodes.lose()
    nodes.add()
    ends_with(0, process)
    assert GOLDEN["jsonl"] in machine.digests()


@pytest.mark.soak
def test_workers_that_need_all_cpus_of_the_cluster_train_once_it_has_prepared(tmp_path, nodes):
    nodes.add()
    machine = Machine("jsonl", tmp_path, str(tmp_path / "runs"))
    overrides = ("hardware.workers=2", "hardware.threads=1", "pretrain.steps=4")
    output = ends_with(0, machine.start(1_000_000, *overrides, until="pretrain"))
    assert "prepare: done" in output
    assert machine.joined() >= 20

"""`pion run --until prepare` with Ray, killed again and again: the same shards, little repeated."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from pipeline.state.stores import open_store
from tests.runs.test_ray_node import nodes
from tests.support.corpora import WORDS, save_tokenizer
from tests.support.ray_cluster import Nodes
from tests.support.waiting import LONG_SECONDS, run_to_end, wait_until
from tests.support.whole_runs import ends_with, start, wait_for, write_job

__all__ = ["nodes"]

MB, PIECES, KILLS = 50, 100, 20
# Text that one shard to train on has, as pieces: it is encoded again, because its end is not known.
OF_A_SHARD = 2

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
from pipeline.data import text_to_rows
from pipeline.stages import prepare_text
prepare_text.LEAST_BYTES, prepare_text.PIECE_BYTES = 0, PIECES
take_over, keep = text_to_rows._Joining._take_over, text_to_rows._Joining._keep_held_out
def slowly(self, number, piece):
    while number > int(Path("most.txt").read_text()):  # so that the text lasts for all kills
        time.sleep(0.05)
    keep(self, number, piece)
def begins(self):
    start = take_over(self)
    print("begins with piece", start, flush=True)
    return start
text_to_rows._Joining._take_over, text_to_rows._Joining._keep_held_out = begins, slowly
if __name__ == "__main__":
    from pipeline.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def write_corpus(folder: Path, megabytes: float) -> None:
    """Write so much text in JSON Lines."""
    draw, size = random.Random(5), 0
    with (folder / "corpus.jsonl").open("w") as file:
        while size < megabytes * 1e6:
            text = " ".join(draw.choices(WORDS, k=draw.randint(20, 900)))
            size += file.write(json.dumps({"text": f"{draw.random()} {text}"}) + "\n")


class Machine:
    """A machine that prepares the text of `folder` for a store."""

    def __init__(self, folder: Path, store: str, megabytes: float, pieces: int) -> None:
        write_corpus(folder, megabytes)
        save_tokenizer(folder / "tokenizer.json", 320)
        size = (folder / "corpus.jsonl").stat().st_size
        self.job = write_job(
            folder,
            store=store,
            sft=None,
            tokenizer={"file": "tokenizer.json"},
            model__vocab_size=320,
            data__sources=[{"kind": "jsonl", "path": "corpus.jsonl"}],
            # A quarter of a piece: few ids are held out, and they fill shards, too.
            data__shard_rows=max(8, size // pieces // 400),
            data__held_out=0.02,
        )
        self.cache, self.store, self._most = (
            folder / "cache",
            open_store(store),
            folder / "most.txt",
        )
        self.let_join(pieces)
        self._program = PROGRAM.replace("PIECES", str(size // pieces))

    def start(
        self, *overrides: str, until: str = "prepare", late: bool = False
    ) -> subprocess.Popen[str]:
        """Start to prepare, or to train too. If Ray is `late`, the first pieces are encoded without
        it."""
        env = os.environ | {"XDG_CACHE_HOME": str(self.cache)}
        if late:
            env["RAY_IS_LATE"] = "1"
        arguments = ("--until", until, *overrides)
        process = start(self.job, *arguments, env=env, program=self._program)
        assert isinstance(process, subprocess.Popen)
        return process

    def let_join(self, number: int) -> None:
        """Let this be the last piece that is joined, until another is named."""
        part = self._most.with_suffix(".part")
        part.write_text(str(number))
        part.replace(self._most)

    def kept(self) -> list[int]:
        """Return which pieces were encoded, by the files on this machine."""
        return [int(path.stem) for path in self.cache.rglob("pieces/*.npz")]

    def in_store(self) -> set[str]:
        """Return the names of the files of prepared data in the store."""
        return {
            entry.key.split("/", 3)[3]
            for entry in self.store.list("_data/")
            if entry.key.count("/") > 2
        }

    def here(self) -> set[str]:
        """Return the names of the files that are prepared on this machine."""
        (pieces,) = self.cache.rglob("pieces")
        paths = pieces.parent.rglob("*.np?")
        return {f"0/{path.relative_to(pieces.parent)}" for path in paths if path.name[0] != "."}

    def shards(self) -> dict[str, str]:
        """Return the sha256 of each shard in the store."""
        return {
            entry.key.split("/", 3)[3]: hashlib.sha256(self.store.read(entry.key)).hexdigest()
            for entry in self.store.list("_data/")
            if entry.key.endswith(".npy")
        }


def in_one_process(machine: Machine, folder: Path) -> dict[str, str]:
    """Return the sha256 of each shard if the text is not cut."""
    code = (
        "import sys; from pathlib import Path; from pipeline.job.file import load_job; "
        "from pipeline.stages.prepare import prepare_part; "
        "prepare_part(load_job(sys.argv[1]), 'pretrain', Path(sys.argv[2]), lambda message: None)"
    )
    run_to_end([sys.executable, "-c", code, str(machine.job), str(folder)], check=True)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.npy")
    }


def task_at_work(process: subprocess.Popen[str]) -> Iterator[psutil.Process]:
    """Yield the processes of a run's Ray that encode a piece now."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if child.cmdline()[:1] == ["ray::do"]:
                yield child


def kill_a_task(process: subprocess.Popen[str]) -> bool:
    """Kill a process that encodes a piece, if there is one now."""
    for child in task_at_work(process):
        child.kill()
        return True
    return process.poll() is not None


def go_on(machine: Machine, process: subprocess.Popen[str], pieces: int) -> Callable[[], bool]:
    """Let so many more pieces be joined; return what says whether they are, or it has ended."""
    wanted = max(machine.kept(), default=-1) + pieces
    machine.let_join(wanted)
    return lambda: max(machine.kept(), default=-1) >= wanted or process.poll() is not None


def uploaded(machine: Machine, process: subprocess.Popen[str]) -> Callable[[], bool]:
    """Return what says whether all that is prepared on the machine by now is in the store."""
    here = machine.here()
    return lambda: here <= machine.in_store() or process.poll() is not None


@pytest.mark.soak
def test_killed_and_moved_again_and_again_the_shards_are_the_same(
    tmp_path: Path, s3_store: str
) -> None:
    machine = Machine(tmp_path, s3_store, MB, PIECES)
    draw, most_repeated, ends = random.Random(0), [], 0
    known = -1
    machine.let_join(known)
    for kill in range(KILLS):
        process = machine.start(late=kill % 4 == 1)
        said = wait_for(process, "begins with piece")
        begins = int(said.rsplit("begins with piece", 1)[1])
        most_repeated.append(known + 1 - begins)
        wait_until(go_on(machine, process, draw.randint(2, 4)), "more pieces", seconds=LONG_SECONDS)
        if kill % 4 == 3:  # a process that encodes; the driver goes on
            more = go_on(machine, process, 4)
            wait_until(partial(kill_a_task, process), "a task at work", every=0.001)
            wait_until(more, "pieces after a kill", seconds=LONG_SECONDS)
        if process.poll() is not None:
            break
        known = max(machine.kept())
        moves = kill % 3 == 2
        if moves:  # what is uploaded by now is known to the next machine
            wait_until(uploaded(machine, process), "its files to be in the store")
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        ends += 1
        if moves:
            shutil.rmtree(machine.cache)
        print(f"kill {ends}: began with {begins}, {most_repeated[-1]} repeated", flush=True)
    machine.let_join(PIECES + 1)
    ends_with(0, machine.start())
    assert machine.shards() == in_one_process(machine, tmp_path / "whole")
    print(f"{ends} kills; repeated pieces: {most_repeated}")
    assert ends == KILLS
    assert max(most_repeated) <= OF_A_SHARD
    assert not [name for name in machine.in_store() if "/pieces/" in name]


@pytest.mark.soak
def test_two_nodes_one_of_which_is_lost_make_the_same_shards(
    tmp_path: Path, s3_store: str, nodes: Nodes
) -> None:
    nodes.add()
    machine = Machine(tmp_path, s3_store, MB / 5, PIECES // 5)
    process = machine.start()
    wait_for(process, "begins with piece")
    wait_until(go_on(machine, process, 4), "four pieces", seconds=LONG_SECONDS)
    machine.let_join(PIECES)
    nodes.lose()
    nodes.add()
    ends_with(0, process)
    assert machine.shards() == in_one_process(machine, tmp_path / "whole")


@pytest.mark.soak
def test_workers_that_need_all_cpus_of_the_cluster_train_once_it_has_prepared(
    tmp_path: Path, nodes: Nodes
) -> None:
    nodes.add()
    machine = Machine(tmp_path, str(tmp_path / "runs"), MB / 10, PIECES // 10)
    overrides = ("hardware.workers=2", "hardware.threads=1", "pretrain.steps=4")
    process = machine.start(*overrides, until="pretrain")
    output = wait_for(process, "begins with piece") + ends_with(0, process)
    assert "prepare: done" in output

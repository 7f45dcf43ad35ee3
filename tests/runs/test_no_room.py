"""A machine that refuses: a full disk, few files and processes, no permission.

The command ends with a message that says what was refused, leaves nothing partial, and ends with 0
once the machine allows it.
"""

import functools
import os
import resource
import shutil
import tempfile
from pathlib import Path

import pytest

from pipeline.state.stores import FileStore
from tests.paths import SEEDS
from tests.support.finished_run import make_run
from tests.support.forked import in_fork
from tests.support.hard_places import (
    PAGE,
    ROOMY,
    run_limited,
    run_on_small_disk,
    why_no_small_disk,
    write_on_full_disks,
)
from tests.support.light_run import light_run
from tests.support.whole_runs import ends_with, head_of, start, write_job

# Somebody else, who needs no name. A limit of processes counts all that a user has on the machine,
# so tests that run next to these have another number.
ANOTHER_USER = 50_000 + os.getpid() % 10_000


def write_small_job(folder, **changes):
    """Write a job that takes a second, and publishes to the folder `model`."""
    few = {"every": 100, "final_rows": 4, "continuations": 0, "prompts": []}
    small = {
        "sft": None,
        "data__held_out": 0.05,
        "hardware__threads": 1,
        "pretrain__steps": 4,
        "pretrain__warmup_steps": 1,
        "evaluate": few,
        "checkpoint": {"every_steps": 100},  # one checkpoint, however slow the machine is
        "publish": {"to": "model"},
    }
    return write_job(folder, **(small | changes))


# ---------------------------------------------------------------- a disk of any size


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """`on_disk(size)`: a run on a disk of so many bytes, and the same run with room."""
    reason = in_fork(why_no_small_disk)
    if reason is not None:
        pytest.skip(reason)
    job = write_small_job(tmp_path_factory.mktemp("small_disks"))
    return functools.cache(functools.partial(in_fork, run_on_small_disk, job))


def pages(used, *folders):
    """Return the bytes on the disk of the files in these folders."""
    return sum(-(-size // PAGE) * PAGE for path, size in used.items() if path.startswith(folders))


# Where the disk is full: the bytes that fit, by the files of a run with room, and the exit code.
REPORT = "runs/tiny/report.html"
FULL_AT = {
    "the claim": (lambda used: 3 * PAGE, 2),
    "the data": (lambda used: pages(used, "runs/_data") // 2, 2),
    "a checkpoint": (
        lambda used: pages(used, "runs/_data") + pages(used, "runs/tiny/checkpoints") // 2,
        74,
    ),
    "the model": (lambda used: pages(used, "") - pages(used, "model", REPORT) + 16 * PAGE, 2),
    "the card": (lambda used: pages(used, "") - pages(used, REPORT) - 3 * PAGE, 2),
    "the report": (lambda used: pages(used, "") - pages(used, REPORT) // 2, 0),
}
SAYS = {
    "the claim": "Nothing was started",
    "the data": "Everything finished before it is safe",
    "a checkpoint": "Everything committed before is safe",
    "the model": "The trained model is safe in",
    "the card": "The trained model is safe in",
    "the report": "To write its report: pion report",
}


# The card's place says what the model's does.
@pytest.mark.parametrize(
    "where",
    [pytest.param(at, marks=[pytest.mark.soak] if at == "the card" else []) for at in FULL_AT],
)
def test_a_run_ends_with_a_message_where_its_disk_is_full(where, on_disk):
    unbroken = on_disk(ROOMY)
    room, code = FULL_AT[where]
    ended = on_disk(room(unbroken.used))
    assert ended.first.code == code, ended.first.output
    assert SAYS[where] in ended.first.output
    check(ended, unbroken)


def test_a_full_disk_says_how_much_is_missing_and_whether_bytes_or_inodes_are(tmp_path):
    reason = in_fork(why_no_small_disk)
    if reason is not None:
        pytest.skip(reason)
    full, no_inodes = in_fork(write_on_full_disks, tmp_path)
    assert full == ("the disk is full (this file needs 12.3 kB, 8.2 kB are free); free some space")
    assert no_inodes == (
        "the disk is full: it can hold no more files, though it has free bytes (see `df -i`); "
        "free some space"
    )


@pytest.mark.soak
@pytest.mark.parametrize("part", range(1, 31))
def test_a_disk_of_any_size(part, on_disk):
    unbroken = on_disk(ROOMY)
    ended = on_disk(pages(dict(unbroken.used), "") * part // 30)
    assert ended.first.code in (0, 2, 74), ended.first.output
    check(ended, unbroken)


def check(ended, unbroken):
    """Check that nothing partial was left, and that the run ended like an unbroken run."""
    says_nothing_of_a_bug(ended.first)
    assert unbroken.first.code == 0, unbroken.first.output
    if ended.first.code or "warning" in ended.first.output:
        assert "disk is full" in ended.first.output or "No space left" in ended.first.output
    assert not ended.partial
    assert ended.again.code == 0, ended.again.output
    assert ended.weights == unbroken.weights
    assert "model/model.safetensors" in ended.used


def says_nothing_of_a_bug(ended):
    assert "Traceback" not in ended.output
    assert "bug" not in ended.output, ended.output


# ---------------------------------------------------------------- low limits


def limited(folder, limits, *command, user=0):
    """Run a command in a fork with these limits; check that it does not speak of a bug."""
    work = functools.partial(run_limited, folder=str(folder), user=user)
    ended = in_fork(work, limits, *command)
    says_nothing_of_a_bug(ended)
    return ended


def run_with_room_for(bytes_per_file, job):
    """Run the job with a limit on the size of files (`ulimit -f`), to act like a full disk."""
    return limited(job.parent, {resource.RLIMIT_FSIZE: bytes_per_file}, "run", str(job))


def test_no_room_for_a_save_loses_nothing_committed(tmp_path):
    # Room for the shards and the tokenizer, but not for a checkpoint's snapshot.
    job = write_small_job(tmp_path, model__d_ff=2048, publish=None)
    ended = run_with_room_for(400_000, job)
    assert ended.code == 74, ended.output
    assert "GB of memory to save from" in ended.output
    assert head_of(tmp_path).stages.keys() == {"prepare"}
    # With room again, the same command resumes.
    assert run_with_room_for(resource.RLIM_INFINITY, job).code == 0
    assert "pretrain" in head_of(tmp_path).stages


def test_a_disk_that_is_full_from_the_start_is_bad_input(tmp_path):
    ended = run_with_room_for(2_000, write_small_job(tmp_path))
    assert ended.code in (2, 74), ended.output


def test_a_store_below_a_file_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "file").write_text("")
    output = ends_with(2, start(write_job(tmp_path, store=str(tmp_path / "file" / "runs"))))
    assert "Nothing was started" in output
    assert "Traceback" not in output


def test_few_open_files(tmp_path):
    job = write_small_job(tmp_path, publish=None)
    ended = limited(tmp_path, {resource.RLIMIT_NOFILE: 12}, "run", str(job))
    assert ended.code in (1, 2, 74), ended.output  # how far it gets depends on what is open already
    assert "too many open files (ulimit -n)" in ended.output
    ended = limited(tmp_path, {resource.RLIMIT_NOFILE: 32}, "run", str(job))
    assert ended.code == 0, ended.output


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_few_processes_of_another_user(place):
    job = write_small_job(place, publish=None)
    run = functools.partial(limited, place, user=ANOTHER_USER)
    assert run({}, "run", str(job), "--until", "prepare").code == 0
    ended = run({resource.RLIMIT_NPROC: 4}, "run", str(job))
    assert ended.code == 1, ended.output
    assert "ulimit -u" in ended.output
    assert "Everything that was committed is safe" in ended.output
    assert "prepare" in head_of(place).stages
    assert limited(place, {}, "status", "runs/tiny").code == 0


def test_no_file_may_grow(tmp_path):
    make_run(tmp_path / "runs")
    limits = {resource.RLIMIT_FSIZE: 10_000}
    commands = {
        "export": ("export", "demo", "out"),
        "import-seed": ("import-seed", str(SEEDS / "pion_nocap_ckpt.pt"), "out"),
    }
    for name, command in commands.items():
        ended = limited(tmp_path, limits, *command)
        assert ended.code == 2, ended.output
        assert "File too large" in ended.output, name
        assert "no part of" in ended.output
        assert "run the same command again" in ended.output
        assert {path.name for path in tmp_path.iterdir()} == {"runs"}
        assert limited(tmp_path, {}, *command).code == 0 or name == "export"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_no_room_for_a_report_or_a_request(tmp_path):
    store = FileStore(tmp_path / "runs")
    light_run(store)
    limits = {resource.RLIMIT_FSIZE: 100}
    ended = limited(tmp_path, limits, "report", "demo")
    assert ended.code == 2, ended.output
    assert "report.html: can't write the report (File too large)" in ended.output
    assert "run the same command again" in ended.output
    assert not [path for path in tmp_path.rglob("*report*")]
    ended = limited(tmp_path, limits, "stop", "demo")
    assert ended.code == 1, ended.output
    assert "requests/" in ended.output
    assert limited(tmp_path, {}, "report", "demo").code == 0
    assert limited(tmp_path, {}, "stop", "demo").code == 0


# ---------------------------------------------------------------- another user


@pytest.fixture
def place():
    """A folder that every user may enter and write."""
    folder = Path(tempfile.mkdtemp(prefix="pion-shared-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_in_the_same_runs_folder(place):
    job = write_small_job(place, store="runs", publish=None)
    light_run(FileStore(place / "runs"), "tiny")
    before = (place / "runs/tiny/HEAD.json").read_bytes()
    as_guest = functools.partial(limited, place, {}, user=ANOTHER_USER)
    expected = {
        ("status", "tiny"): (0, "owner: nobody"),
        ("checkpoints", "tiny"): (0, "pretrain step"),
        ("run", str(job), "name=other"): (2, "no permission; check who owns the folder"),
        ("run", str(job), "--redo", "prepare"): (2, "no permission; check who owns the folder"),
        ("stop", "tiny"): (1, "no permission; check who owns the folder"),
        ("report", "tiny"): (2, "can't write the report (Permission denied)"),
        ("fork", "tiny", "copy"): (1, "no permission"),
    }
    for command, (code, says) in expected.items():
        ended = as_guest(*command)
        assert ended.code == code, (command, ended.output)
        assert says in ended.output, (command, ended.output)
    assert (place / "runs/tiny/HEAD.json").read_bytes() == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_before_a_closed_folder(place):
    job = write_small_job(place, publish=None, store=str(place / "closed/runs"))
    light_run(FileStore(place / "closed/runs"), "tiny")
    run = str(place / "closed/runs/tiny")
    (place / "closed").chmod(0o700)
    expected = {
        ("run", str(job)): 2,
        ("status", run): 2,
        ("generate", run, "--prompt", "a"): 2,
        ("export", run, "out"): 2,
        ("import-seed", str(SEEDS / "pion_nocap_ckpt.pt"), str(place / "closed/x")): 2,
    }
    for command, code in expected.items():
        ended = limited(place, {}, *command, user=ANOTHER_USER)
        assert ended.code == code, (command, ended.output)
        assert "no permission" in ended.output or "Permission denied" in ended.output, command
        assert str(place / "closed") in ended.output

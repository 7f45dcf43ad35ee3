"""A disk that is full or not writable, through the whole command."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from tests.support.whole_runs import RUN_SECONDS, ends_with, finish, head_of, start, write_job


def run_with_room_for(bytes_per_file: int, job: Path) -> tuple[int, str]:
    """Start `pion run` with a limit on the size of files, to act like a full disk."""
    limit = (bytes_per_file, bytes_per_file)
    process = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", str(job)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        # Python would write truncated bytecode, and fail on it later.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    return process.returncode, process.stdout


def test_no_room_for_a_save_loses_nothing_committed(tmp_path: Path) -> None:
    # Room for the shards and the tokenizer, but not for a checkpoint's snapshot.
    job = write_job(tmp_path, sft=None, model__d_ff=2048)
    code, output = run_with_room_for(400_000, job)
    assert code == 74, output
    assert "GB of memory to save from" in output
    assert "Traceback" not in output
    assert head_of(tmp_path).stages.keys() == {"prepare"}
    finish(job)  # with room again, the same command resumes
    assert "pretrain" in head_of(tmp_path).stages


def test_a_disk_that_is_full_from_the_start_is_bad_input(tmp_path: Path) -> None:
    code, output = run_with_room_for(2_000, write_job(tmp_path, sft=None))
    assert code in (2, 74), output
    assert "Traceback" not in output
    assert "bug" not in output


def test_a_store_below_a_file_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = ends_with(2, start(write_job(tmp_path, store=str(tmp_path / "file" / "runs"))))
    assert "Nothing was started" in output
    assert "Traceback" not in output

"""What the machine refuses is told apart from a bug."""

import errno
import os

import pytest

from pipeline.cli import main
from pipeline.commands import status
from pipeline.machine.no_room_or_permission import refusal


def os_error(number, path=None):
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (os_error(errno.ENOSPC, "runs/x"), 1, "runs/x: the disk is full"),
        (os_error(errno.EMFILE), 1, "ulimit -n"),
        (os_error(errno.EAGAIN), 1, "ulimit -u"),
        (os_error(errno.EFBIG), 1, "ulimit -f"),
        (os_error(errno.EACCES, "/root/x"), 2, "/root/x: no permission"),
        (os_error(errno.EROFS, "/x"), 2, "read-only"),
        (MemoryError(), 1, "too little memory"),
        (RuntimeError("can't start new thread"), 1, "ulimit -u"),
        (RuntimeError("can't start new thread"), 1, "ulimit -v"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), 1, "ulimit -v"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "too little memory"),
    ],
)
def test_a_refusal_names_the_limit_and_what_to_do(error, code, says):
    ending = refusal(error)
    assert ending.exit_code == code
    for words in (says, "Everything that was committed is safe", "run the same command again"):
        assert words in str(ending)


@pytest.mark.parametrize(
    "error", [os_error(errno.EINVAL), RuntimeError("no such operator"), ValueError("x")]
)
def test_anything_else_is_a_bug(error):
    assert refusal(error) is None


def test_a_command_without_memory_is_no_bug(monkeypatch, capsys):
    def no_memory(**options):
        raise MemoryError

    monkeypatch.setattr(status, "show_runs", no_memory)
    assert main(["status"]) == 1
    printed = capsys.readouterr().err
    assert "too little memory" in printed
    assert "bug" not in printed

"""Owners of a run: whether they are alive, and what code they run."""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from pion.untrusted import read_file
from pipeline.state import owner
from pipeline.state.owner import Owner, checkout, differences, is_running, may_take_over
from tests.support.states import someone
from tests.support.waiting import read_until, run_to_end

PRINT_OWNER = """
import dataclasses, json, sys
from pipeline.state.owner import Owner
print(json.dumps(dataclasses.asdict(Owner.me())), flush=True)
sys.stdin.readline()
"""


def owner_of(process):
    return Owner(**json.loads(read_until(process, "{")))


@pytest.fixture(autouse=True)
def no_launch(monkeypatch):
    monkeypatch.delenv("PION_LAUNCH_ID", raising=False)
    monkeypatch.delenv("SKYPILOT_TASK_ID", raising=False)


def test_a_living_process_of_this_machine_is_not_taken_over(start):
    other = owner_of(start(PRINT_OWNER))
    assert is_running(other, Owner.me()) is True
    assert may_take_over(other, Owner.me()) is None


def test_a_killed_process_is_taken_over_even_before_its_parent_has_noticed(start):
    process = start(PRINT_OWNER)
    other = owner_of(process)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and still a zombie
    assert Path(f"/proc/{process.pid}").exists()
    assert is_running(other, Owner.me()) is False
    process.wait(60)
    assert may_take_over(other, Owner.me()) == f"its owner, {other.describe()}, is dead"


NO_PID = 2**22 + 1


@pytest.mark.parametrize(
    ("mine", "others", "running"),
    [
        ({}, {"pid_start": Owner.me().pid_start - 1}, False),  # this process has a dead one's pid
        ({}, {"pid": NO_PID, "boot_id": "other"}, None),
        ({}, {"pid": NO_PID, "pid_namespace": "pid:[1]"}, None),
        ({"boot_id": ""}, {"pid": NO_PID, "boot_id": ""}, None),
    ],
    ids=["pid used again", "another boot", "another container", "no boot id"],
)
def test_only_of_this_boot_and_container_a_process_is_known_to_be_dead(mine, others, running):
    me = dataclasses.replace(Owner.me(), **mine)
    other = dataclasses.replace(me, session="other", **others)
    assert is_running(other, me) is running
    assert (may_take_over(other, me) is None) == (running is None)


def test_a_released_run_and_ones_own_are_taken_over():
    me = Owner.me()
    assert may_take_over(None, me) == "it was released"
    assert may_take_over(me, Owner.me()) == "this process owned it"


def test_the_same_launch_is_taken_over_and_no_launch_matches_nothing():
    mine = someone(launch_id="launch-1")
    assert may_take_over(someone(launch_id="launch-1"), mine) is not None
    assert may_take_over(someone(launch_id="launch-2"), mine) is None
    assert may_take_over(someone(), someone()) is None


def test_the_launch_id_is_pions_own_or_else_skypilots(monkeypatch):
    assert Owner.me().launch_id is None
    monkeypatch.setenv("SKYPILOT_TASK_ID", "sky-1")
    assert Owner.me().launch_id == "sky-1"
    monkeypatch.setenv("PION_LAUNCH_ID", "pion-1")
    assert Owner.me().launch_id == "pion-1"


def test_package_versions_are_read_without_importing_the_packages():
    code = (
        "import sys; from pipeline.state.owner import Owner; versions = Owner.me().versions;"
        "print(sorted(versions), 'torch' in sys.modules or 'ray' in sys.modules)"
    )
    output = run_to_end([sys.executable, "-c", code], check=True).stdout
    assert "'torch'" in output
    assert "'python'" in output
    assert output.endswith("False\n")


def test_the_commit_and_uncommitted_changes_of_a_checkout_are_reported(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        run_to_end(["git", "-C", tmp_path, *identity, *arguments], check=True)

    assert checkout(tmp_path) == (None, None)
    git("init", "-q")
    code = tmp_path / "pion"
    code.mkdir()
    (code / "train.py").write_text("lr = 1\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    commit, dirty = checkout(tmp_path)
    assert len(commit) == 40
    assert dirty is None

    (code / "train.py").write_text("lr = 2\n")
    _, changed = checkout(tmp_path)
    (code / "train.py").write_text("lr = 3\n")
    same_commit, changed_again = checkout(tmp_path)
    assert same_commit == commit
    assert None not in (changed, changed_again)
    assert changed != changed_again

    # A file that git does not know yet is code too, with any name.
    (code / "mine é.py").write_text("lr = 4\n")
    _, added = checkout(tmp_path)
    (code / "mine é.py").write_text("lr = 5\n")
    _, edited = checkout(tmp_path)
    assert len({changed_again, added, edited}) == 3

    # Job files, logs and data are no code.
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    assert checkout(tmp_path) == (commit, edited)

    (tmp_path / "site-packages").mkdir()
    assert checkout(tmp_path / "site-packages") == (None, None)


@pytest.fixture
def new_checkout(tmp_path):
    """The code of a checkout without a commit, in which nothing is tracked."""
    run_to_end(["git", "-C", tmp_path, "init", "-q"], check=True)
    (tmp_path / "pion").mkdir()
    return tmp_path / "pion"


def dirty(folder):
    return checkout(folder.parent)[1]


def test_of_a_link_only_its_target_is_read_and_of_a_device_nothing(new_checkout):
    (new_checkout / "train.py").write_text("lr = 1\n")
    (new_checkout / "zeros").symlink_to("/dev/zero")  # its size is 0, and it has no end
    first = dirty(new_checkout)
    (new_checkout / "zeros").unlink()
    (new_checkout / "zeros").symlink_to("/dev/null")
    assert None not in (first, dirty(new_checkout))
    assert dirty(new_checkout) != first
    (new_checkout / "zeros").unlink()
    os.mkfifo(new_checkout / "pipe")  # reading it would wait forever
    assert dirty(new_checkout) is not None


def test_of_many_files_only_so_many_bytes_are_read(new_checkout, monkeypatch):
    monkeypatch.setattr(owner, "LARGEST_CHANGES", 3000)
    read = []

    def reading(path, limit):
        read.append(path.stat().st_size)
        return read_file(path, limit)

    monkeypatch.setattr(owner, "read_file", reading)
    for name in "abcdef":
        (new_checkout / name).write_bytes(b"x" * 999)
    assert dirty(new_checkout) is not None
    assert sum(read) == 3 * 999


def test_of_a_large_difference_only_the_beginning_is_read(new_checkout, monkeypatch):
    (new_checkout / "data").write_text("a\n")
    commit = ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"]
    for command in (["add", "."], commit):
        run_to_end(["git", "-C", new_checkout, *command], check=True)
    monkeypatch.setattr(owner, "LARGEST_CHANGES", 1 << 16)
    (new_checkout / "data").write_text("b\n" * (1 << 18))
    assert len(owner._git(new_checkout, "diff", "HEAD") or b"") == 1 << 16
    assert dirty(new_checkout) is not None


def test_differences_between_two_owners_name_what_changed():
    before = someone(commit="a" * 40, dirty=None, versions={"torch": "2.14", "ray": "2.60"})
    after = someone(commit="b" * 40, dirty="0123", versions={"torch": "2.15", "ray": "2.60"})
    assert differences(before, after) == [
        "commit aaaaaaaaaa → bbbbbbbbbb",
        "uncommitted changes none → 0123",
        "torch 2.14 → 2.15",
    ]
    assert differences(after, after) == []

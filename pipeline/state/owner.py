"""The owner of a run: one process on one machine, and its code; who may take over, and when; and
who wrote a record."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import getpass
import hashlib
import importlib.metadata
import os
import platform
import select
import socket
import stat
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pion import DISTRIBUTION
from pion.errors import BadInput
from pion.untrusted import read_file
from pipeline.console.formats import printable
from pipeline.machine.child_process import without_secrets
from pipeline.machine.rented import boot_id, is_rented, rented_since
from pipeline.state.record_json import Count, Time

_PACKAGES = ("pion", "torch", "ray", "transformers", "numpy", "safetensors", "tokenizers")
_SESSION = uuid.uuid4().hex


@dataclass(frozen=True)
class Owner:
    """One process.

    `pid_start` (clock ticks since boot) distinguishes the process from a later process with the
    same pid. `pid` is valid only in this `boot_id` and `pid_namespace`. `started_at` (Unix seconds)
    is when the process began to cost money: when the machine was rented or, on your own machine,
    when the process started.
    """

    session: str
    pid: Count
    pid_start: Count
    pid_namespace: str
    boot_id: str
    host: str
    launch_id: str | None
    commit: str | None
    dirty: str | None
    versions: Mapping[str, str] = field(default_factory=dict)
    started_at: Time = 0.0

    @classmethod
    def me(cls) -> Owner:
        """Return this process."""
        return cls(
            session=_SESSION,
            pid=os.getpid(),
            pid_start=_running(os.getpid()) or 0,
            pid_namespace=pid_namespace(),
            boot_id=boot_id(),
            host=socket.gethostname(),
            launch_id=launch_id(),
            **dataclasses.asdict(code_version()),
            started_at=_paid_since(),
        )

    def describe(self) -> str:
        """Return `pid 123 on host`."""
        return f"pid {self.pid} on {self.host}"

    def same_machine(self, other: Owner) -> bool:
        """Return whether both are processes of one container in one boot of one machine."""
        here = (self.boot_id, self.pid_namespace)
        return all(here) and here == (other.boot_id, other.pid_namespace)


@dataclass(frozen=True)
class Author:
    """A process of `user` on `host`."""

    host: str
    pid: Count
    user: str

    @classmethod
    def me(cls) -> Author:
        """Return this process. In a container, the user may be a number without a name."""
        user = f"user {os.getuid()}"
        with contextlib.suppress(KeyError, OSError, ImportError):
            user = getpass.getuser()
        return cls(socket.gethostname(), os.getpid(), user)

    def describe(self) -> str:
        """Return `ann on host-a`."""
        return printable(f"{self.user} on {self.host}")


_STARTED_AT = round(time.time(), 3)


@dataclass(frozen=True)
class CodeVersion:
    """A commit, a hash of uncommitted changes (None if unknown or none), and package versions."""

    commit: str | None
    dirty: str | None
    versions: Mapping[str, str]


RELEASED = "it was released"


def launch_id() -> str | None:
    """Return the id that all starts of one launch share; None if no manager started this
    process."""
    return os.environ.get("PION_LAUNCH_ID") or os.environ.get("SKYPILOT_TASK_ID")


def may_take_over(other: Owner | None, me: Owner) -> str | None:
    """Return why `me` may claim at once from `other`; None if only a person or silence can
    decide."""
    if other is None:
        return RELEASED
    if other.session == me.session:
        return "this process owned it"
    if is_running(other, me) is False:
        return f"its owner, {other.describe()}, is dead"
    if other.launch_id and other.launch_id == me.launch_id:
        return f"its owner, {other.describe()}, belongs to the same launch"
    return None


def is_running(other: Owner, me: Owner) -> bool | None:
    """Return whether `other` is alive; None if this machine can't tell."""
    if not me.same_machine(other):
        return None
    return _running(other.pid) == other.pid_start


def differences(before: Owner, after: Owner) -> list[str]:
    """Return what changed in the code between two owners, one line each: `torch 2.14 → 2.15`."""
    lines = []
    if before.commit != after.commit:
        lines.append(f"commit {(before.commit or '?')[:10]} → {(after.commit or '?')[:10]}")
    if before.dirty != after.dirty:
        lines.append(f"uncommitted changes {before.dirty or 'none'} → {after.dirty or 'none'}")
    for name in sorted({*before.versions, *after.versions}):
        old, new = before.versions.get(name, "absent"), after.versions.get(name, "absent")
        if old != new:
            lines.append(f"{name} {old} → {new}")
    return lines


@functools.cache
def code_version() -> CodeVersion:
    """Return the running code and packages. The code is this checkout, or the checkout that the
    launcher copied."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            name = DISTRIBUTION if package == "pion" else package
            versions[package] = importlib.metadata.version(name)
    commit, dirty = checkout(Path(__file__).parents[2])
    if commit is None:
        commit, dirty = (os.environ.get(name) or None for name in ("PION_COMMIT", "PION_DIRTY"))
    return CodeVersion(commit, dirty, versions)


# What of a checkout is code: job files, logs and data next to it change no result by themselves.
CODE = ("pion", "pipeline")
GIT_SECONDS = 10.0
# Of an untracked file with more bytes, only the size counts.
LARGEST_CODE = 1 << 20
# Of all changes together, bytes beyond these don't count.
LARGEST_CHANGES = 64 << 20


def checkout(root: Path) -> tuple[str | None, str | None]:
    """Return the commit and dirty-diff hash of the git checkout at `root`; (None, None) if there is
    none."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top.decode().strip()) != root.resolve():
        return None, None  # an installed package, perhaps inside another project's checkout
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "diff", "HEAD", "--", *CODE) or b""
    digest, room = hashlib.sha256(changes), LARGEST_CHANGES - len(changes)
    others = _git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or b""
    for name in filter(None, others.split(b"\0")):
        content = _content(root / os.fsdecode(name), min(LARGEST_CODE, max(0, room)))
        digest.update(name + b"\0" + content)
        room -= len(content)
    dirty = digest.hexdigest()[:12] if changes or others else None
    return (commit.decode().strip() if commit else None), dirty


def _content(path: Path, limit: int) -> bytes:
    """Return bytes that differ between two versions of an untracked file.

    A file of more than `limit` bytes is data, not code, so only its size counts. Of a link, the
    target's name counts. Nothing else is read: a device may have no end.
    """
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return os.fsencode(os.readlink(path))
        if not stat.S_ISREG(status.st_mode):
            return b""
        return read_file(path, limit) if status.st_size <= limit else str(status.st_size).encode()
    except (OSError, BadInput):  # removed or grown meanwhile
        return b""


def _git(root: Path, *arguments: str) -> bytes | None:
    """Return the first LARGEST_CHANGES bytes that git prints; None if git fails or takes 10 s."""
    try:
        with subprocess.Popen(
            ["git", "-C", str(root), *arguments],
            env=without_secrets(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            assert process.stdout is not None
            printed, ended = _read(process.stdout.fileno())
            if ended and process.wait() == 0:
                return printed
            process.kill()
            return printed if len(printed) >= LARGEST_CHANGES else None
    except OSError:
        return None


def _read(pipe: int) -> tuple[bytes, bool]:
    """Read LARGEST_CHANGES bytes for at most GIT_SECONDS; return them, and whether that was all."""
    chunks: list[bytes] = []
    room, end = LARGEST_CHANGES, time.monotonic() + GIT_SECONDS
    while room and select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        chunks.append(os.read(pipe, min(room, 1 << 20)))
        if not chunks[-1]:
            return b"".join(chunks), True
        room -= len(chunks[-1])
    return b"".join(chunks), False


def _running(pid: int) -> int | None:
    """Return when process `pid` started, in clock ticks since boot; None if it is gone or a
    zombie."""
    state, *rest = _stat(pid)
    return None if state in "ZX" else int(rest[18])


def is_suspended(pid: int) -> bool:
    """Return whether a process of this machine was stopped, as by Ctrl-Z."""
    return _stat(pid)[0] == "T"


def _stat(pid: int) -> list[str]:
    """Return the state of a process (`X`: it is gone) and the fields after it."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return ["X"]
    return line.rpartition(")")[2].split()  # the process name may contain anything


@functools.cache
def _paid_since() -> float:
    return round(rented_since(_STARTED_AT), 3) if is_rented() else _STARTED_AT


def pid_namespace() -> str:
    """Return the pid namespace: two containers of one machine share a boot id, but not their
    pids."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

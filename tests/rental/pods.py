"""Pods: this machine again, in separate namespaces, where nothing that is written is kept.

A pod is an overlay of this machine's root on a tmpfs, with a chroot and its own processes, host
name and loopback network. It only reaches the ports that are passed in. When its first process
ends, everything in it is gone.
"""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote_plus

from tests.rental.netns import Bridge, Namespace, separate_network
from tests.support.waiting import PATIENCE_SECONDS, wait_until

# The home folder in a pod. This machine's home is hidden: it has keys and configuration.
HOME = "/pod"
# SkyPilot's own Python environment in a pod: too large to copy into each pod.
RUNTIME = f"{HOME}/skypilot-runtime"

# Runs as process 1 of the new namespaces. The mounts are private, so they end with the namespace.
_ENTRY = """
set -e
mount -t tmpfs -o size={disk_gb}g pod {mount}
mkdir {mount}/upper {mount}/work {mount}/root {mount}/upper-runtime {mount}/work-runtime
(cd {image} && tar -c --exclude=.{runtime}/* .) | tar -xC {mount}/upper
cp -a {files}/. {mount}/upper/
mount -t overlay overlay -o lowerdir=/,upperdir={mount}/upper,workdir={mount}/work {mount}/root
cd {mount}/root
mount -t overlay overlay .{runtime} \
    -o lowerdir={image}{runtime},upperdir={mount}/upper-runtime,workdir={mount}/work-runtime
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=1777 tmpfs tmp
{binds}
mount -t tmpfs tmpfs run
mkdir run/sshd
hostname {id}
exec chroot . /usr/bin/env -i {environment} bash /init.sh
"""

_SSHD = """Port 22
ListenAddress 127.0.0.1
PermitRootLogin prohibit-password
UsePAM no
Subsystem sftp internal-sftp
MaxSessions 100
MaxStartups 100
"""


@dataclass
class Pod:
    """One rented machine. `status` is what the cloud says, whether or not the pod is alive."""

    name: str
    gpu: str
    use_spot: bool
    bid: float | None
    disk_gb: int
    image: str
    id: str = field(default_factory=lambda: f"pod{uuid.uuid4().hex[:11]}")
    status: str = "RUNNING"
    created: float = field(default_factory=time.time)
    ended: float | None = None
    _unshare: subprocess.Popen[bytes] | None = None
    _network: Namespace | None = None
    _ssh: Bridge | None = None
    _passed_in: list[Bridge] = field(default_factory=list)
    _last_log: str = ""

    def boot(self, folder, image, init, environment, ports):
        """Start the pod with the start script `init`, and pass in `ports` of our loopback.

        `folder` gets the files for the start; `image` has the files that this machine lacks.
        """
        mount, files = folder / self.id / "mount", folder / self.id / "files"
        mount.mkdir(parents=True)
        passwd = Path("/etc/passwd").read_text()
        for name, text in {
            "init.sh": init,
            "etc/ssh/sshd_config": _SSHD,
            "etc/passwd": passwd.replace(":/root:", f":{HOME}:", 1),
        }.items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            (files / name).write_text(text)
        environment = {
            **environment,
            "HOME": HOME,
            "RUNPOD_POD_ID": self.id,
            "RUNPOD_GPU_NAME": quote_plus(self.gpu),
        }
        entry = _ENTRY.format(
            mount=mount,
            files=files,
            image=image,
            runtime=RUNTIME,
            id=self.id,
            disk_gb=self.disk_gb,
            binds=_bound_again(sys.prefix, sys.base_prefix, environment.get("UV_CACHE_DIR", "")),
            environment=shlex.join(f"{name}={value}" for name, value in environment.items()),
        )
        namespaces = ["--mount", "--pid", "--net", "--uts", "--fork", "--kill-child"]
        with (folder / self.id / "log").open("wb") as log:
            self._unshare = subprocess.Popen(
                ["unshare", *namespaces, "--propagation", "private", "bash", "-c", entry],
                env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},  # chroot is there
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process, log_file = self._unshare, folder / self.id / "log"
        wait_until(
            lambda: separate_network(process.pid) or process.poll() is not None,
            lambda: f"the network of a pod: {log_file.read_text()}",
        )
        if process.poll() is not None:
            raise RuntimeError(f"a pod did not start: {log_file.read_text()}")
        self._network = network = Namespace(self._unshare.pid)
        self._ssh = Bridge(socket.create_server(("127.0.0.1", 0)), lambda: network.connect(22))
        for port in ports:
            self._passed_in.append(Bridge(network.listen(port), partial(_to_loopback, port)))

    @property
    def alive(self):
        """Whether the pod's processes run; the cloud may say otherwise."""
        return self._unshare is not None and self._unshare.poll() is None

    @property
    def ssh_port(self):
        """The port of our loopback that leads to the pod's sshd; None until sshd answers."""
        if self._network is None or self._ssh is None:
            return None
        try:
            self._network.connect(22).close()
        except OSError:
            return None
        return self._ssh.port

    @property
    def home(self):
        """The pod's home folder, seen from here, while the pod is alive."""
        return Path(f"/proc/{self._first_process()}/root{HOME}")

    def job_log(self):
        """Return the output of the pod's SkyPilot job, also after the pod's end; empty without a
        job."""
        if not self.alive:
            return self._last_log
        with contextlib.suppress(OSError):
            logs = sorted(self.home.glob("sky_logs/**/run.log"))
            return "".join(log.read_text(errors="replace") for log in logs)
        return ""

    def processes(self):
        """Return every process except the first: its id as seen from here, and its command."""
        first = self._first_process()
        found = {}
        with contextlib.suppress(OSError):
            namespace = os.readlink(f"/proc/{first}/ns/pid")
            for entry in os.scandir("/proc"):
                with contextlib.suppress(OSError):
                    if not entry.name.isdigit() or int(entry.name) == first:
                        continue
                    if os.readlink(f"{entry.path}/ns/pid") == namespace:
                        words = Path(f"{entry.path}/cmdline").read_bytes().split(b"\0")
                        found[int(entry.name)] = b" ".join(words).decode(errors="replace")
        return found

    def signal(self, number):
        """Send signal `number` to all processes except those that keep the pod alive: the first
        process, which is SkyPilot's start script, and its final `sleep infinity`."""
        for pid, command in self.processes().items():
            if command.strip() != "sleep infinity":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def close_ssh(self):
        """Cut the pod off from ssh. Its processes continue, and still reach the store."""
        self._ssh.cut()

    def end(self, notice=0.0, early=lambda: False):
        """Kill the pod. With `notice`, first send SIGTERM and wait that many seconds, or fewer:
        until `early()`."""
        if notice:
            self.signal(signal.SIGTERM)
            deadline = time.monotonic() + notice
            while time.monotonic() < deadline and not early():
                time.sleep(0.1)
        self._last_log = self.job_log()
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait(PATIENCE_SECONDS)
        for bridge in [*self._passed_in, *([self._ssh] if self._ssh else [])]:
            bridge.cut()
        if self._network is not None:
            self._network.close()
            self._network = None
        self.ended = self.ended or time.time()

    def _first_process(self):
        pid = self._unshare.pid
        with contextlib.suppress(OSError, IndexError):  # no such process, no child
            return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
        return 0


def _bound_again(*folders):
    """Return commands that make `folders` visible although the pod's empty /tmp hides them."""
    hidden = [shlex.quote(folder) for folder in folders if folder.startswith("/tmp/")]
    return "\n".join(f"mkdir -p .{folder}; mount --bind {folder} .{folder}" for folder in hidden)


def _to_loopback(port):
    return socket.create_connection(("127.0.0.1", port))

"""RunPod's GraphQL API, as much of it as SkyPilot speaks, renting out pods on this machine."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from tests.rental.pods import Pod
from tests.support.http_body import read_body

API_KEY = "rpa_LOOPBACK"
SOLD_OUT = "There are no longer any instances available with the requested specifications."


@dataclass
class RunPod:
    """The account of one user: its pods, and every request made of the API."""

    folder: Path
    image: Path
    environment: dict[str, str]
    ports: list[int]
    url: str = ""
    sold_out: set[str] = field(default_factory=set)
    """GPUs, by RunPod's names ("NVIDIA A40"), of which there is none to rent."""
    small_disks: int = 0
    """How many of the next pods get a tenth of the disk that was asked for."""
    requests: list[tuple[float, str]] = field(default_factory=list)
    """When, and the GraphQL of everything asked that is not a list of pods."""
    all_pods: list[Pod] = field(default_factory=list)
    """Every pod ever rented, the gone ones too."""
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def pods(self, status: str | None = "RUNNING") -> list[Pod]:
        """The pods that the API lists with `status` (None: with any), the oldest first."""
        with self._lock:
            listed = [pod for pod in self.all_pods if pod.status != "TERMINATED"]
            return [pod for pod in listed if status is None or pod.status == status]

    def preempt(
        self, pod: Pod, notice: float = 5.0, leaves: Literal["gone", "exited"] = "gone"
    ) -> None:
        """Take a pod: SIGTERM, `notice` seconds (0: no signal), then it is dead.

        The API lists it no more, or goes on listing it as EXITED.
        """
        pod.end(notice)
        with self._lock:
            pod.status = "EXITED" if leaves == "exited" else "TERMINATED"

    def cut_off(self, pod: Pod) -> None:
        """The API knows it no more and nobody reaches it, but its processes run on.

        The store they still reach. `pod.end()` ends them.
        """
        with self._lock:
            pod.status = "TERMINATED"
        pod.close_ssh()

    def forget(self) -> None:
        """End every pod, cut off or not, and be as new."""
        for pod in self.all_pods:
            pod.end()
        self.all_pods, self.requests, self.sold_out, self.small_disks = [], [], set(), 0

    def answer(self, query: str) -> dict[str, Any]:
        """The `data` of the answer. Raises ValueError with what RunPod would say."""
        query = " ".join(query.split())
        if "myPods" in query:
            return {"myself": {"pods": [_listed(pod) for pod in self.pods(None)]}}
        self.requests.append((time.time(), query))
        for mutation in ("podRentInterruptable", "podFindAndDeployOnDemand"):
            if mutation in query:
                pod = self._rent(query, use_spot=mutation == "podRentInterruptable")
                return {mutation: {"id": pod.id, "desiredStatus": pod.status}}
        if "podTerminate" in query:
            for pod in self.pods(None):
                if pod.id == _argument(query, "podId"):
                    pod.end()
                    pod.status = "TERMINATED"
            return {"podTerminate": None}
        if "gpuTypes" in query:
            gpu = {"id": _argument(query, "id"), "memoryInGb": 1, "maxGpuCount": 8}
            return {"gpuTypes": [gpu]}
        if "podTemplates" in query:
            return {"myself": {"podTemplates": []}}
        if "updateUserSettings" in query:
            return {"updateUserSettings": {"id": "user", "pubKey": _argument(query, "pubKey")}}
        if "myself" in query:
            return {"myself": {"id": "user", "pubKey": "", "networkVolumes": []}}
        raise ValueError(f"Cannot query this: {query}")

    def _rent(self, query: str, use_spot: bool) -> Pod:
        gpu = _argument(query, "gpuTypeId")
        if gpu in self.sold_out:
            raise ValueError(SOLD_OUT)
        bid = _argument(query, "bidPerGpu")
        disk_gb = int(_argument(query, "containerDiskInGb") or 10)
        if self.small_disks:
            self.small_disks, disk_gb = self.small_disks - 1, disk_gb // 10
        pod = Pod(
            name=_argument(query, "name"),
            gpu=gpu,
            use_spot=use_spot,
            bid=float(bid) if bid else None,
            disk_gb=disk_gb,
            image=_argument(query, "imageName"),
        )
        # SkyPilot sends its start script as: bash -c 'echo BASE64 | base64 --decode > …'
        encoded = re.search(r"echo (\S+) \| base64", _argument(query, "dockerArgs"))
        if encoded is None:
            raise ValueError(f"no start script in dockerArgs: {query}")
        init = base64.b64decode(encoded[1]).decode()
        pod.boot(self.folder, self.image, init, self.environment, self.ports)
        with self._lock:
            self.all_pods.append(pod)
        return pod


@contextmanager
def loopback_runpod(
    folder: Path, image: Path, environment: dict[str, str], ports: list[int]
) -> Iterator[RunPod]:
    """Serve until the block ends, and with it every pod."""
    runpod = RunPod(folder, image, environment, ports)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(read_body(self))
            if self.headers.get("Authorization") != f"Bearer {API_KEY}":
                return self._send(401, {"errors": [{"message": "Unauthorized"}]})
            try:
                self._send(200, {"data": runpod.answer(body["query"])})
            except ValueError as error:
                self._send(200, {"errors": [{"message": str(error)}], "data": None})

        def do_HEAD(self) -> None:
            """SkyPilot's question whether there is a network at all."""
            self._send(200, {})

        def _send(self, status: int, answer: dict[str, Any]) -> None:
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    runpod.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield runpod
    finally:
        server.shutdown()
        server.server_close()
        runpod.forget()


_RENT = """mutation {{ podRentInterruptable( input: {{ name: "{name}", imageName: "an/image",
gpuTypeId: "NVIDIA A40", bidPerGpu: 0.2, containerDiskInGb: 1, dockerArgs:
"bash -c 'echo {init} | base64 --decode > init.sh; bash init.sh'" }} ) {{ id }} }}"""


def rent(init: str, name: str = "test-head") -> str:
    """The request that rents a pod of that name with this start script."""
    return _RENT.format(name=name, init=base64.b64encode(init.encode()).decode())


def _argument(query: str, name: str) -> str:
    """The value of argument `name` of a GraphQL query; empty if it has none."""
    found = re.search(rf'\b{name}: (?:"((?:[^"\\]|\\.)*)"|([^\s,}}]+))', query)
    if found is None:
        return ""
    return found[1] if found[1] is not None else found[2]


def _listed(pod: Pod) -> dict[str, Any]:
    ports = None
    if pod.status == "RUNNING" and (ssh := pod.ssh_port) is not None:
        public = {"ip": "127.0.0.1", "isIpPublic": True, "privatePort": 22, "publicPort": ssh}
        inside = {"ip": "127.0.0.1", "isIpPublic": False, "privatePort": 8266, "publicPort": 8266}
        ports = [{**public, "type": "tcp"}, {**inside, "type": "http"}]
    return {
        "id": pod.id,
        "name": pod.name,
        "desiredStatus": pod.status,
        "imageName": pod.image,
        "gpuCount": 1,
        "vcpuCount": 2,
        "memoryInGb": 8,
        "costPerHr": pod.bid or 0.0,
        "containerRegistryAuthId": "",
        "machine": {"gpuDisplayName": pod.gpu},
        "runtime": {"ports": ports} if ports else None,
    }

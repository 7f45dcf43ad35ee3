"""A RunPod whose pods are on this machine: the part of the GraphQL API that SkyPilot uses."""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from tests.rental.pods import Pod
from tests.support.runpod_api import RunPodApi, argument, serve_runpod
from tests.support.sky_catalog import PRICES, Price

SOLD_OUT = "There are no longer any instances available with the requested specifications."


class RunPod(RunPodApi):
    """The account of one user: its pods, and every request to the API."""

    def __init__(
        self, folder: Path, image: Path, environment: dict[str, str], ports: list[int]
    ) -> None:
        super().__init__()
        self.url = ""
        # GPUs that can't be rented, by RunPod's names ("NVIDIA A40").
        self.sold_out: set[str] = set()
        # Whether no GPU can be rented as spot.
        self.no_spot = False
        # The price list, by SkyPilot's names of the GPUs.
        self.prices: Mapping[str, Price] = PRICES
        # How many times its catalog price a pod costs.
        self.times_dearer = 1.0
        # How many of the next pods get a tenth of the requested disk.
        self.small_disks = 0
        # Every pod ever rented, including pods that are gone.
        self.all_pods: list[Pod] = []
        self._folder, self._image = folder, image
        self._environment, self._ports = environment, ports
        self._lock = threading.RLock()
        self._notice = threading.Lock()

    def pods(self, status: str | None = "RUNNING") -> list[Pod]:
        """Return the pods that the API lists with `status` (None: any), the oldest first."""
        with self._lock:
            listed = [pod for pod in self.all_pods if pod.status != "TERMINATED"]
            return [pod for pod in listed if status is None or pod.status == status]

    def preempt(
        self,
        pod: Pod,
        notice: float = 5.0,
        leaves: Literal["gone", "exited"] = "gone",
        early: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take a pod away: send SIGTERM, wait `notice` seconds (0: no signal) or until `early()`,
        then kill it.

        SkyPilot may notice the signal and want to terminate the pod: that waits for the notice to
        be over. Then the API no longer lists the pod, or continues to list it as EXITED.
        """
        with self._notice:
            pod.end(notice, early)
        with self._lock:
            pod.status = "EXITED" if leaves == "exited" else "TERMINATED"

    def cut_off(self, pod: Pod) -> None:
        """Remove a pod from the API and cut its ssh, while its processes continue.

        The processes still reach the store. `pod.end()` ends them.
        """
        with self._lock:
            pod.status = "TERMINATED"
        pod.close_ssh()

    def forget(self) -> None:
        """End every pod, cut off or not, and reset the account."""
        for pod in self.all_pods:
            pod.end()
        self.all_pods, self.requests, self.sold_out, self.small_disks = [], [], set(), 0
        self.no_spot, self.times_dearer = False, 1.0

    def list_pods(self) -> list[dict[str, Any]]:
        return [_listed(pod, self.cost(pod)) for pod in self.pods(None)]

    def cost(self, pod: Pod) -> float:
        """Return the dollars per hour that a pod is billed."""
        price = self.prices.get(pod.gpu.removeprefix("NVIDIA ").replace(" ", ""))
        on_demand = price.on_demand if price is not None else None
        return self.times_dearer * (pod.bid or on_demand or 0.0)

    def terminate(self, pod_id: str) -> None:
        with self._notice:
            for pod in self.pods(None):
                if pod.id == pod_id:
                    pod.end()
                    pod.status = "TERMINATED"

    def answer_other(self, query: str) -> dict[str, Any]:
        for mutation in ("podRentInterruptable", "podFindAndDeployOnDemand"):
            if mutation in query:
                pod = self.rent_pod(query, use_spot=mutation == "podRentInterruptable")
                return {mutation: {"id": pod.id, "desiredStatus": pod.status}}
        if "gpuTypes" in query:
            gpu = {"id": argument(query, "id"), "memoryInGb": 1, "maxGpuCount": 8}
            return {"gpuTypes": [gpu]}
        if "podTemplates" in query:
            return {"myself": {"podTemplates": []}}
        if "updateUserSettings" in query:
            return {"updateUserSettings": {"id": "user", "pubKey": argument(query, "pubKey")}}
        if "myself" in query:
            return {"myself": {"id": "user", "pubKey": "", "networkVolumes": []}}
        return super().answer_other(query)

    def rent_pod(self, query: str, *, use_spot: bool) -> Pod:
        gpu = argument(query, "gpuTypeId")
        if gpu in self.sold_out or (use_spot and self.no_spot):
            raise ValueError(SOLD_OUT)
        bid = argument(query, "bidPerGpu")
        disk_gb = int(argument(query, "containerDiskInGb") or 10)
        if self.small_disks:
            self.small_disks, disk_gb = self.small_disks - 1, disk_gb // 10
        pod = Pod(
            name=argument(query, "name"),
            gpu=gpu,
            use_spot=use_spot,
            bid=float(bid) if bid else None,
            disk_gb=disk_gb,
            image=argument(query, "imageName"),
        )
        # SkyPilot sends its start script as: bash -c 'echo BASE64 | base64 --decode > …'
        encoded = re.search(r"echo (\S+) \| base64", argument(query, "dockerArgs"))
        if encoded is None:
            raise ValueError(f"no start script in dockerArgs: {query}")
        init = base64.b64decode(encoded[1]).decode()
        pod.boot(self._folder, self._image, init, self._environment, self._ports)
        with self._lock:
            self.all_pods.append(pod)
        return pod


@contextmanager
def loopback_runpod(
    folder: Path, image: Path, environment: dict[str, str], ports: list[int]
) -> Iterator[RunPod]:
    """Serve until the block ends, then end every pod."""
    runpod = RunPod(folder, image, environment, ports)
    with serve_runpod(runpod) as url:
        runpod.url = url
        # Its pods may ask what they cost.
        environment["RUNPOD_API_BASE_URL"] = url
        ports.append(int(url.rpartition(":")[2]))
        try:
            yield runpod
        finally:
            runpod.forget()


_RENT = """mutation {{ podRentInterruptable( input: {{ name: "{name}", imageName: "an/image",
gpuTypeId: "NVIDIA A40", bidPerGpu: 0.2, containerDiskInGb: 1, dockerArgs:
"bash -c 'echo {init} | base64 --decode > init.sh; bash init.sh'" }} ) {{ id }} }}"""


def rent(init: str, name: str = "test-head") -> str:
    """Return the request that rents a pod of that name with this start script."""
    return _RENT.format(name=name, init=base64.b64encode(init.encode()).decode())


def _listed(pod: Pod, cost: float) -> dict[str, Any]:
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
        "costPerHr": cost,
        "containerRegistryAuthId": "",
        "machine": {"gpuDisplayName": pod.gpu},
        "runtime": {"ports": ports} if ports else None,
    }

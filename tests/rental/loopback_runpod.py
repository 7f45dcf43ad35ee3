"""A RunPod whose pods are on this machine: the part of the GraphQL API that SkyPilot uses."""

import base64
import re
import threading
from contextlib import contextmanager

from tests.rental.pods import Pod
from tests.support.runpod_api import RunPodApi, argument, serve_runpod
from tests.support.sky_catalog import PRICES

SOLD_OUT = "There are no longer any instances available with the requested specifications."


class RunPod(RunPodApi):
    """The account of one user: its pods, and every request to the API."""

    def __init__(self, folder, image, environment, ports):
        super().__init__()
        self.url = ""
        # GPUs that can't be rented, by RunPod's names ("NVIDIA A40").
        self.sold_out = set()
        # Whether no GPU can be rented as spot.
        self.no_spot = False
        # The price list, by SkyPilot's names of the GPUs.
        self.prices = PRICES
        # How many times its catalog price a pod costs.
        self.times_dearer = 1.0
        # How many of the next pods get a tenth of the requested disk.
        self.small_disks = 0
        # Every pod ever rented, including pods that are gone.
        self.all_pods = []
        self._folder, self._image = folder, image
        self._environment, self._ports = environment, ports
        self._lock = threading.RLock()
        self._notice = threading.Lock()

    def pods(self, status="RUNNING"):
        """Return the pods that the API lists with `status` (None: any), the oldest first."""
        with self._lock:
            listed = [pod for pod in self.all_pods if pod.status != "TERMINATED"]
            return [pod for pod in listed if status is None or pod.status == status]

    def preempt(self, pod, notice=5.0, leaves="gone", early=lambda: False):
        """Take a pod away: send SIGTERM, wait `notice` seconds (0: no signal) or until `early()`,
        then kill it.

        SkyPilot may notice the signal and want to terminate the pod: that waits for the notice to
        be over. Then the API no longer lists the pod, or continues to list it as EXITED.
        """
        with self._notice:
            pod.end(notice, early)
        with self._lock:
            pod.status = "EXITED" if leaves == "exited" else "TERMINATED"

    def cut_off(self, pod):
        """Remove a pod from the API and cut its ssh, while its processes continue.

        The processes still reach the store. `pod.end()` ends them.
        """
        with self._lock:
            pod.status = "TERMINATED"
        pod.close_ssh()

    def forget(self):
        """End every pod, cut off or not, and reset the account."""
        for pod in self.all_pods:
            pod.end()
        self.all_pods, self.requests, self.sold_out, self.small_disks = [], [], set(), 0
        self.no_spot, self.times_dearer = False, 1.0

    def list_pods(self):
        return [_listed(pod, self.cost(pod)) for pod in self.pods(None)]

    def cost(self, pod):
        """Return the dollars per hour that a pod is billed."""
        price = self.prices.get(pod.gpu.removeprefix("NVIDIA ").replace(" ", ""))
        on_demand = price.on_demand if price is not None else None
        return self.times_dearer * (pod.bid or on_demand or 0.0)

    def terminate(self, pod_id):
        with self._notice:
            for pod in self.pods(None):
                if pod.id == pod_id:
                    pod.end()
                    pod.status = "TERMINATED"

    def answer_other(self, query):
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

    def rent_pod(self, query, *, use_spot):
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
def loopback_runpod(folder, image, environment, ports):
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


def rent(init, name="test-head"):
    """Return the request that rents a pod of that name with this start script."""
    return _RENT.format(name=name, init=base64.b64encode(init.encode()).decode())


def _listed(pod, cost):
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

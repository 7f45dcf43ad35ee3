"""A provider that rents nothing. Tests decide what its SkyPilot and RunPod say; it notes orders."""

import dataclasses

from pion.errors import BadInput, PionError
from pipeline.rent.managed.names import cluster_name
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.pods import Pod
from pipeline.rent.managed.provider.provider import Provider
from pipeline.state.rows.metrics import EventLog

NOW = 1_000_000.0
JOB = ManagedJob(
    id=7,
    name="pion-demo-0123abcd",
    status="RUNNING",
    submitted_at=NOW - 9000,
    started_at=NOW - 8000,
    cloud="RunPod",
    region="CA",
    resources="1x[spot](A40:1, cpus=9, mem=50)",
)
ME, ANOTHER = "0123abcd", "99999999"


class Killed(BaseException):
    """The watcher was killed."""


class FakeProvider(Provider):
    """SkyPilot with some jobs, RunPod with some pods, and a record of every order.

    At first, nothing is rented. A test may replace a method.

    Attributes:
        orders: what was ordered, such as "cancel 7", "submit 7" (again), or "terminate a".
        failures: what the next calls raise, by name: "list", "submit" and "cancel" before they do
            anything, "submitted" and "cancelled" after they have done it.
        refuses: the pods that RunPod does not end.
        only: the only place that the YAML allows.
        kill_at: the number of the call, from 1, at which the watcher is killed.
    """

    def __init__(self, *jobs):
        self.jobs = list(jobs)
        self.listed = []
        self.orders = []
        self.failures = {}
        self.refuses = set()
        self.only = None
        self.down = False
        self.calls, self.kill_at = 0, 0
        self.clusters = {}
        self.recorded = {}

    def start(self, say):
        """Nothing to start."""

    def managed_jobs(self, name=None, *, with_task=False):
        self._call("list")
        if self.down:
            raise PionError("SkyPilot could not list the managed jobs.")
        found = [job for job in self.jobs if name in (None, job.name)]
        return sorted(found, key=lambda job: -job.id)

    def submit(self, task, name):
        self._call("submit")
        job = self.rent(max(job.id for job in self.jobs) + 1, task, name)
        self.jobs.append(job)
        self._call("submitted")
        return job.id

    def rent(self, job_id, task, name):
        """Note an order that SkyPilot has accepted; return its job."""
        like, avoid = task
        # Never two machines of a launch at a time.
        assert not any(job.live and job.task == like.task for job in self.jobs)
        self.orders.append(" avoiding ".join([f"submit {like.id}", *map(str, avoid)]))
        self.listed = [self.pod("b", "RUNNING", job_id)]
        new = dataclasses.replace(JOB, status="STARTING", submitted_at=None, started_at=None)
        return dataclasses.replace(new, id=job_id, task=like.task)

    def task_of(self, wanted):
        self._call("task")
        if self.only in map(str, wanted.avoid):
            raise BadInput("the YAML allows nothing but that")
        return wanted.like, wanted.avoid

    def cancel(self, job_ids):
        self._call("cancel")
        for job_id in job_ids:
            self.orders.append(f"cancel {job_id}")
            self.end(job_id, "CANCELLED")
        self._call("cancelled")

    def controller_is_here(self):
        return True

    def my_hash(self):
        return ME

    def list_pods(self, *, of_everybody=False):
        return self.listed

    def terminate_pod(self, pod_id):
        if pod_id in self.refuses:
            raise PionError(f"RunPod could not terminate pod {pod_id}: timed out.")
        self.orders.append(f"terminate {pod_id}")
        self.listed = [pod for pod in self.listed or () if pod.id != pod_id]

    def clusters_now(self):
        return self.clusters

    def clusters_recorded(self, names):
        return {name: status for name, status in self.recorded.items() if name in names}

    def _call(self, name):
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed
        if self.failures.get(name):
            raise self.failures[name].pop()

    # Called by tests.

    def fail(self, name, times=1000, error=None):
        """Let the next calls of that name fail."""
        error = error or PionError(f"SkyPilot could not {name}: timed out")
        self.failures[name] = [error] * times

    def pod(self, name, status="RUNNING", job_id=7, created=None):
        """Return a pod of JOB, or of a job that replaced JOB."""
        named = f"{cluster_name(JOB.name, job_id)}-{ME}-head"
        return Pod(name, named, status, "A40", 0.36, created=created)

    def change(self, job_id, **changes):
        """Change fields of one job."""
        self.jobs = [
            dataclasses.replace(job, **changes) if job.id == job_id else job for job in self.jobs
        ]

    def end(self, job_id, status, **changes):
        """End a job."""
        self.change(job_id, status=status, **changes)


def note_machine(run, epoch, pod, **about):
    """Write what a rented machine says of itself once it has claimed the run."""
    machine = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "count": 1, "spot": True} | about
    events = EventLog(run.store, run.name, epoch)
    events.append("machine", id=pod, **machine)
    events.flush()


def beat(claim, **status):
    claim.heartbeat.report(**status)
    claim.heartbeat.beat()

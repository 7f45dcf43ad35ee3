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


class FakeProvider(Provider):
    """SkyPilot with some jobs, RunPod with some pods, and a record of every order.

    At first, nothing is rented. A test may replace a method.
    """

    def __init__(self, *jobs):
        self.jobs = list(jobs)
        self.listed = []
        self.terminated = []
        self.cancelled = []
        self.submitted = []
        # The only place that the YAML allows.
        self.only = None
        self.down = False
        self.here = True
        self.clusters = {}
        self.recorded = {}

    def start(self, say):
        """Nothing to start."""

    def managed_jobs(self, name=None, *, with_task=False):
        if self.down:
            raise PionError("SkyPilot could not list the managed jobs.")
        found = [job for job in self.jobs if name in (None, job.name)]
        return sorted(found, key=lambda job: -job.id)

    def submit(self, task, name):
        assert not any(job.live for job in self.jobs)  # never two machines at a time
        self.submitted.append(task)
        new = max(job.id for job in self.jobs) + 1
        self.jobs.append(dataclasses.replace(JOB, id=new))
        self.listed = [self.pod("b", "RUNNING", new)]
        return new

    def task_of(self, wanted):
        if self.only is not None and self.only in wanted.avoid:
            raise BadInput("the YAML allows nothing but that")
        return wanted.like.id, set(wanted.avoid)

    def cancel(self, job_ids):
        self.cancelled += job_ids
        for job_id in job_ids:
            self.change(job_id, status="CANCELLED")

    def controller_is_here(self):
        return self.here

    def my_hash(self):
        return ME

    def list_pods(self, *, of_everybody=False):
        return self.listed

    def terminate_pod(self, pod_id):
        self.terminated.append(pod_id)
        self.listed = [pod for pod in self.listed or () if pod.id != pod_id]

    def clusters_now(self):
        return self.clusters

    def clusters_recorded(self, names):
        return {name: status for name, status in self.recorded.items() if name in names}

    # Called by tests.

    def pod(self, name, status, job_id=7, created=None):
        """Return a pod of JOB, or of a job that replaced JOB."""
        named = f"{cluster_name(JOB.name, job_id)}-{ME}-head"
        return Pod(name, named, status, "A40", 0.36, created=created)

    def now(self, status, **changes):
        """Make the newest job the only one, with this status."""
        self.jobs = [dataclasses.replace(self.jobs[-1], status=status, **changes)]

    def change(self, job_id, **changes):
        """Change fields of one job."""
        self.jobs = [
            dataclasses.replace(job, **changes) if job.id == job_id else job for job in self.jobs
        ]


def watched_rental():
    """Return JOB, running on one pod."""
    provider = FakeProvider(JOB)
    provider.listed = [provider.pod("a", "RUNNING")]
    return provider


def fail_to_submit(provider, times):
    """Let the next submissions fail."""
    submit = provider.submit
    failures = [PionError("SkyPilot could not submit: timed out") for _ in range(times)]

    def submit_at_last(task, name):
        if failures:
            raise failures.pop()
        return submit(task, name)

    provider.submit = submit_at_last


def lose_secrets(provider):
    """Unset a job's secrets, so the job can't be submitted again."""

    def task_of(wanted):
        raise BadInput("HF_TOKEN must be set in the environment")

    provider.task_of = task_of


def note_machine(run, epoch, pod, **about):
    """Write what a rented machine says of itself once it has claimed the run."""
    machine = {"cloud": "RunPod", "region": "CA", "gpu": "A40", "count": 1, "spot": True} | about
    events = EventLog(run.store, run.name, epoch)
    events.append("machine", id=pod, **machine)
    events.flush()


def beat(claim, **status):
    claim.heartbeat.report(**status)
    claim.heartbeat.beat()


def during(time, *events):
    """Let one of the events happen after each look, until none is left."""
    left = list(events)
    time.during_sleep = lambda: left.pop(0)() if left else None


def succeed(provider):
    return lambda: provider.now("SUCCEEDED")


def succeed_when_submitted(provider, time):
    """Let the run be done as soon as a job was submitted again."""
    time.during_sleep = lambda: provider.now("SUCCEEDED") if provider.submitted else None


def succeed_after(provider, time, seconds):
    """Let the job succeed that long from now, whatever happens to it."""
    start = time.time
    time.during_sleep = lambda: provider.now("SUCCEEDED") if time.time - start > seconds else None

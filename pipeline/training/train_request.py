"""What the driver tells the workers to train, and the group of processes that train together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.job.model_section import Base
from pipeline.state.owner import Owner
from pipeline.state.stores import open_store


@dataclass(frozen=True)
class TrainRequest:
    """What the driver tells its workers to train, as plain JSON, for other processes and nodes.

    Attributes:
        job: the whole job file.
        base: the record of the model that the run starts from, or None.
        job_folder: the folder of the job file; paths in the job are relative to it.
        store: the store's URL.
        owner: the driver's `Owner`; the workers claim the run in its name.
        stages: the training stages that may still need training, in order.
        digests: the digest of each stage of the job.
        data: the digest of each training stage's prepared data.
        gpus: the number of GPUs to train on; 0 for CPUs.
        by_ray: whether Ray restarts dead workers.
        started: when `pion run` began (Unix time), for the seconds until the first step.
        price: of this machine, in dollars per hour; None if it is not known.
        at_most: the record of the plan to train by at most, after a larger one has failed; or None.
    """

    job: dict[str, Any]
    job_folder: str
    store: str
    owner: dict[str, Any]
    stages: list[str]
    digests: dict[str, str]
    base: dict[str, Any] | None = None
    gpus: int = 0
    by_ray: bool = False
    started: float = 0.0
    price: float | None = None
    at_most: dict[str, Any] | None = None

    @classmethod
    def of(
        cls, job: Job, digests: Digests, owner: Owner, stages: list[str], **rest: Any
    ) -> TrainRequest:
        """Return the request for `stages` of `job`."""
        return cls(
            job=job.model_dump(mode="json", exclude_unset=True),
            base=None if job.base is None else job.base.to_dict(),
            job_folder=str(job.folder),
            store=open_store(job.store).url,
            owner=dataclasses.asdict(owner),
            stages=stages,
            digests=digests.stages,
            **rest,
        )

    def load_job(self) -> Job:
        """Return the job that the driver validated."""
        base = None if self.base is None else Base(**self.base)
        job = Job.model_validate(self.job, context={"base": base})
        job._folder = Path(self.job_folder)
        return job


@dataclass(frozen=True)
class Group:
    """This process among the processes that train together."""

    rank: int = 0
    world_size: int = 1
    distributed: bool = False

    def from_rank_0(self, value: Any) -> Any:
        """Return rank 0's value, on every rank."""
        if not self.distributed:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def of_all_ranks(self, value: Any) -> list[Any]:
        """Return the value of each rank, on every rank."""
        if not self.distributed:
            return [value]
        import torch.distributed as dist

        values = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def wait_for_all(self) -> None:
        """Block until every rank is here."""
        if self.distributed:
            import torch.distributed as dist

            dist.all_gather_object([None] * self.world_size, None)

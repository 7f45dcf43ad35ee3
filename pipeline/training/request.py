"""What the driver asks of the workers that train, and who they are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.state.owner import Owner
from pipeline.state.stores import open_store


@dataclass(frozen=True)
class TrainRequest:
    """What the driver asks of its workers; plain JSON, since it crosses processes and nodes."""

    job: dict[str, Any]
    job_folder: str
    store: str
    owner: dict[str, Any]
    stages: list[str]
    digests: dict[str, str]
    data: dict[str, str]
    gpus: int = 0
    by_ray: bool = False
    """Whether Ray starts a worker anew that has ended."""
    started: float = 0.0
    """Unix time at which `pion run` began, for seconds-to-first-step."""

    @classmethod
    def of(
        cls, job: Job, digests: Digests, owner: Owner, stages: list[str], **rest: Any
    ) -> TrainRequest:
        """The request for `stages` of `job`."""
        return cls(
            job=job.model_dump(mode="json"),
            job_folder=str(job.folder),
            store=open_store(job.store).url,
            owner=dataclasses.asdict(owner),
            stages=stages,
            digests=digests.stages,
            data=digests.data,
            **rest,
        )

    def load_job(self) -> Job:
        """The job as it was validated by the driver."""
        job = Job.model_validate(self.job)
        job._folder = Path(self.job_folder)
        return job

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TrainRequest:
        return cls(**raw)


@dataclass(frozen=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    world_size: int = 1
    distributed: bool = False

    def from_rank_0(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if not self.distributed:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

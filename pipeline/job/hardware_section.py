"""The section `hardware` of a job file: workers, precision and memory, which change no result."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from pion.config.part_fields import FACTOR
from pipeline.job.section import BATCH, SECONDS, Section, made, refuse, runtime

# Why a job can't divide a model.
ALONE = (
    "fsdp: true divides the model among several workers, and workers is {workers}. Remove fsdp, or "
    "set workers to at least 2"
)
NO_WORKERS = "not a number of workers, nor the fewest and the most workers, such as [2, 16]"


class Hardware(Section):
    workers: int | tuple[int, int] | None = runtime(
        None,
        "number of Ray Train workers; unset: one per GPU of this machine, or of the Ray at "
        "PION_RAY_ADDRESS, and 1 without a GPU; 0: train in this process, without Ray. `[2, 16]`: "
        "as many as the Ray at PION_RAY_ADDRESS has room for, at least 2 and at most 16; when "
        "nodes leave or join, training continues with fewer or more workers",
        most=4096,
    )
    micro_batch: int | None = runtime(
        None,
        "sequences that a worker computes at once; unset: as many as fit into its memory",
        gt=0,
        most=BATCH,
    )
    dtype: Literal["auto", "bfloat16", "float32"] = runtime(
        "auto", "precision of the computation; auto: bfloat16 on hardware that computes it fast"
    )
    residual: Literal["auto", "bfloat16", "float32"] = runtime(
        "auto",
        "precision of the hidden states between blocks. bfloat16 moves fewer bytes, and is used "
        "only where the computation is in bfloat16; auto: bfloat16 on a GPU",
    )
    threads: int | None = runtime(
        None, "CPU threads of a worker; unset: the cores divided by the workers", gt=0, most=4096
    )
    recompute: bool | None = runtime(
        None,
        "recompute activations to save memory; unset: only if a single sequence would otherwise "
        "not fit into memory",
    )
    fsdp: Literal["auto", True, False] = runtime(
        "auto",
        "let each worker keep only a part of the weights, gradients and moments, and gather the "
        "weights of a block when it computes; auto: on GPUs, only if a single sequence would "
        "otherwise not fit into memory",
    )
    compile: Literal["auto", True, False] = runtime(
        "auto", "compile the training step with torch.compile; auto: on a GPU"
    )
    hang_seconds: float | None = runtime(
        None,
        "seconds without a step that count as a hang; unset: 20 times the usual time of a step, "
        "and at least 120",
        gt=0,
        most=SECONDS,
    )
    deterministic: bool = runtime(False, "give bit-identical results on CUDA too, but more slowly")
    shard_cache_gb: float = runtime(
        20.0,
        "disk space for shards that are fetched while training, from the Hub or the store, in GB",
        gt=0,
        most=FACTOR,
    )

    @field_validator("workers", mode="wrap")
    @classmethod
    def _a_number_or_two(cls, given: Any, read: ValidatorFunctionWrapHandler) -> Any:
        several = isinstance(given, list | tuple | dict)
        mistake = f"{given!r:.60}: {NO_WORKERS}" if several else NO_WORKERS
        if several and any(isinstance(number, bool) for number in given):
            raise ValueError(mistake)
        try:
            workers = read(given)
        except ValidationError:
            raise ValueError(mistake) from None
        if not isinstance(workers, tuple):
            return refuse(workers, ["should be at least 0"] if (workers or 0) < 0 else [])
        fewest, most = workers
        if fewest < 1:
            mistake = f"[{fewest}, {most}]: at least 1 worker trains. Write [1, {max(1, most)}]"
        elif fewest > most:
            mistake = f"[{fewest}, {most}]: the fewest workers come first. Write [{most}, {fewest}]"
        else:
            return workers
        raise ValueError(mistake)

    @model_validator(mode="after")
    def _divided_among_several(self) -> Hardware:
        alone = self.fsdp is True and self.min_workers in (0, 1)
        return refuse(self, made({ALONE.format(workers=self.workers_in_words): alone}))

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while they train."""
        return isinstance(self.workers, tuple)

    @property
    def min_workers(self) -> int | None:
        """The fewest workers that train; None: one per GPU."""
        return self.workers[0] if isinstance(self.workers, tuple) else self.workers

    @property
    def max_workers(self) -> int | None:
        """The most workers that train; None: one per GPU."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers

    @property
    def workers_in_words(self) -> str:
        """The workers as a job is written: `2` or `[2, 16]`."""
        return str(list(self.workers) if isinstance(self.workers, tuple) else self.workers)

    @property
    def sharded(self) -> bool | None:
        """Whether workers divide the weights; None: if the model does not fit otherwise."""
        return None if self.fsdp == "auto" else self.fsdp

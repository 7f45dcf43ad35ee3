"""The ways to fine-tune on a GPU: all weights, with recomputed activations, or by LoRA."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pion.data.order import rows_per_rank
from pion.errors import BadInput
from pion.lora import Lora
from pion.train.memory import Workload, predict_memory
from pion.train.micro_batch import HEADROOM, DoesNotFit, choose_micro_batch
from pipeline.job import Job
from pipeline.rent.plan.estimate import largest_phase, workers_on, workload_on
from pipeline.rent.plan.prices import Offer

GIB = 2**30


@dataclass(frozen=True)
class Way:
    """One way to fine-tune on a GPU, with the micro-batch that a run would use.

    If it does not fit, `peak_bytes` is what the smallest micro-batch needs.
    """

    micro_batch: int
    recompute: bool
    peak_bytes: int
    fits: bool

    def __str__(self) -> str:
        rows = "1 row" if self.micro_batch == 1 else f"{self.micro_batch} rows"
        return f"{'✓' if self.fits else '✗'} {self.peak_bytes / GIB:.1f} GiB ({rows})"


@dataclass(frozen=True)
class Ways:
    """What fine-tuning needs on one GPU.

    Attributes:
        usable: the bytes of a GPU that training may use.
        full: all weights are trained, and all activations are kept.
        recomputed: all weights are trained, and activations are recomputed.
        lora: LoRA's additions are trained; None if LoRA can't adapt this model.
        rank: LoRA's rank, the job's or the default.
    """

    usable: int
    full: Way
    recomputed: Way
    lora: Way | None
    rank: int

    def __str__(self) -> str:
        cells = {"sft in full": self.full, "recomputed": self.recomputed}
        if self.lora is not None:
            cells[f"by LoRA of rank {self.rank}"] = self.lora
        return "; ".join(f"{name}: {way}" for name, way in cells.items())


def ways_on(job: Job, offer: Offer, num_nodes: int = 1) -> Ways | None:
    """Return what `sft` needs on one GPU of the offer, for each way to train it.

    None without `sft`, without a GPU, and for a GPU whose memory is not known.
    """
    if job.sft is None or offer.gpu is None or offer.gpu_memory is None:
        return None
    work = largest_phase(workload_on(offer.gpu, job, "sft"), job, "sft")
    rows = rows_per_rank(job.sft.global_batch, workers_on(job, offer, num_nodes))
    asked, lora = job.hardware, work.lora or Lora()

    def way(changed: Workload, recompute: bool | None) -> Way:
        assert offer.gpu_memory is not None
        usable = int(offer.gpu_memory * (1 - HEADROOM))
        try:
            derived, recompute = choose_micro_batch(
                changed, rows_per_rank=rows, memory_bytes=offer.gpu_memory, recompute=recompute
            )
        except DoesNotFit:
            derived, recompute = 1, recompute is not False
        micro_batch = min(asked.micro_batch or derived, rows)
        peak = predict_memory(changed, micro_batch=micro_batch, recompute=recompute).total
        return Way(micro_batch, recompute, peak, peak <= usable)

    full = replace(work, lora=None)
    try:
        by_lora = way(replace(work, lora=lora, optimizer="adamw"), asked.recompute)
    except BadInput:  # it has no projections that LoRA can adapt
        by_lora = None
    usable = int(offer.gpu_memory * (1 - HEADROOM))
    return Ways(usable, way(full, False), way(full, True), by_lora, lora.rank)

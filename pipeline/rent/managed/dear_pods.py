"""Find pods that cost more than planned, from what RunPod bills and the prices of the launch."""

from __future__ import annotations

from pipeline.cost.budget import SAID_ABOVE
from pipeline.machine.gpus import sky_names
from pipeline.machine.rented import CPU, PRICES_VARIABLE, planned_prices
from pipeline.rent.managed.diagnose import Finding, SkyView
from pipeline.rent.managed.pods import Pod
from pipeline.rent.managed.recorded_task import variable_of


def dear_pods(sky: SkyView) -> list[Finding]:
    """Return a finding for each pod that costs more than planned.

    Nothing is to be done: a machine asks RunPod itself, also while nobody watches, and refuses to
    start a run for which it is too expensive.
    """
    if sky.job is None or not sky.job.live:
        return []
    prices = planned_prices({PRICES_VARIABLE: variable_of(sky.job, PRICES_VARIABLE) or ""})
    return [
        Finding(
            "higher price",
            f"pod {pod.id} costs ${pod.price:.2f} per hour, {pod.price / planned:.2f} times the "
            f"planned ${planned:.2f}. Costs are counted with the higher price. Above "
            "budget.price_tolerance, the run does not start there",
            "note",
            (pod.id,),
        )
        for pod in sky.pods or ()
        if pod.alive
        and pod.price is not None
        and (planned := _planned(pod, prices))
        and pod.price > SAID_ABOVE * planned
    ]


def _planned(pod: Pod, prices: dict[str, float]) -> float | None:
    names = [CPU] if pod.gpu is None else [pod.gpu, *sky_names(pod.gpu)]
    return next((prices[name] for name in names if name in prices), None)

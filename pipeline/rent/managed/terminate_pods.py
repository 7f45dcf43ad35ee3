"""End pods, and with them their bills: dead ones, hung ones, and those that nobody needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pion.errors import PionError
from pipeline.rent.managed.pods import ask_runpod, list_pods


def terminate_pod(pod_id: str) -> None:
    """End a pod; a pod that is already gone is no error. Raises PionError."""
    try:
        ask_runpod(f"terminate pod {pod_id}", lambda runpod: runpod.terminate_pod(pod_id))
    except PionError:
        if any(pod.id == pod_id for pod in list_pods()):
            raise


def terminate_each(pod_ids: Sequence[str], terminate: Callable[[str], None]) -> list[str]:
    """End these pods; return what was done, in words. Raises PionError."""
    for pod_id in pod_ids:
        terminate(pod_id)
    return [f"terminated pod {pod_id}" for pod_id in pod_ids]

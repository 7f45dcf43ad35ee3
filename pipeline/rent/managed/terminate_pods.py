"""End pods that are dead, hang, or are not needed. This ends their bills."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pion.errors import PionError
from pipeline.rent.managed.pods import ask_runpod, list_pods


def terminate_pod(pod_id: str) -> None:
    """End a pod. It is no error if the pod is already gone. Raises PionError."""
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

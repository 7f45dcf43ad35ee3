"""A terminated pod is gone, and a pod that can't be terminated is an error."""

from __future__ import annotations

import pytest

from pion.errors import PionError
from pipeline.rent.managed.provider.pods import terminate_pod
from tests.support.runpod_api import RunPodApi


def test_a_pod_that_is_already_gone_is_no_error(runpod_api: RunPodApi) -> None:
    runpod_api.rent("a", "pion-demo-0123abcd-12-0123abcd-head")
    terminate_pod("a")
    terminate_pod("a")
    assert runpod_api.ids == []


def test_a_pod_that_can_not_be_ended_is_an_error(runpod_api: RunPodApi) -> None:
    runpod_api.error = "pod is locked"
    with pytest.raises(PionError, match="pod is locked"):
        terminate_pod("a")

"""A pod that can't be ended keeps no other pod and no job alive, and is not forgotten."""

import pytest

from pion.errors import PionError
from pipeline.rent.managed.provider.jobs import BOOT_SECONDS
from pipeline.state.notes.stop_requests import ask_stop
from tests.support.fake_provider import during, succeed


@pytest.fixture
def stuck(provider):
    """Three pods of the job. Until it is cleared, RunPod refuses to end those that are named."""
    refused, really = {"a"}, provider.terminate_pod
    provider.listed = [provider.pod(name, "RUNNING") for name in "abc"]

    def terminate(pod):
        if pod in refused:
            raise PionError(f"RunPod could not terminate pod {pod}: timed out.")
        really(pod)

    provider.terminate_pod = terminate
    return refused


@pytest.mark.parametrize("stopped", [True, False], ids=["cancel", "relaunch"])
def test_a_boot_that_never_ends_costs_only_the_pod_that_can_not_be_ended(
    watcher, provider, run, time, said, stuck, stopped
):
    if stopped:
        ask_stop(run, "pion stop")
    provider.now("STARTING", submitted_at=time.time)
    end = time.time + BOOT_SECONDS + 1500

    def live():
        if time.time > end:
            stuck.clear()
        if provider.submitted:
            provider.now("SUCCEEDED", id=8)

    time.during_sleep = live
    assert watcher.follow() == (4 if stopped else 0)
    assert set(provider.terminated) == {"a", "b", "c"}
    assert provider.cancelled == [7]
    assert [order[0] for order in provider.submitted] == ([] if stopped else [7])
    assert time.time > end, "no second machine, and no end, before the pod is gone"
    trouble = [line for line in said if "pod a: timed out" in line]
    assert 3 <= len(trouble) <= 4, "at once, then every ten minutes"
    assert all("pods that cost $0.36 per hour: a." in line for line in trouble[1:])
    assert any("terminated pod a" in line for line in said)


def test_dead_pods_are_ended_whatever_happens_to_one_of_them(watcher, provider, time, said, stuck):
    provider.listed = [provider.pod(name, "EXITED") for name in "abc"]
    during(time, lambda: None, stuck.clear, lambda: None, succeed(provider))
    assert watcher.follow() == 0
    assert provider.terminated == ["b", "c", "a"]


def test_a_single_look_says_which_pod_still_costs(watcher, provider, stuck):
    provider.listed = [provider.pod(name, "EXITED") for name in "abc"]
    with pytest.raises(PionError, match="could not terminate pod a"):
        watcher.look_once()
    assert provider.terminated == ["b", "c"]

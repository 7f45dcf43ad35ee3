"""RunPod's own list of pods, and their end, through the real client."""

import pytest

from pion.errors import PionError
from pipeline.rent.managed.provider.pods import Pod, list_pods, terminate_pod
from tests.support.fake_provider import ANOTHER, ME
from tests.support.runpod_api import API_KEY

CLUSTER = "pion-demo-0123abcd-12"


@pytest.mark.parametrize(
    ("change", "created"),
    [
        ("Rented by User: Fri Jul 12 2024 15:14:40 GMT-0400 (Eastern Daylight Time)", 1720811680.0),
        ("Rented by User: Tue Dec 16 2025 17:44:56 GMT+0000 (Universal Time)", 1765907096.0),
        ("Rented by User: some day", None),
        ("Rented by User: Fri Jul 99 2024 15:14:40 GMT-0400", None),
        ("Exited by Runpod: Fri Jul 12 2024 15:14:40 GMT-0400", None),
        ("", None),
    ],
)
def test_when_a_pod_was_rented_is_read_from_runpods_words(runpod_api, change, created):
    runpod_api.rent("a", "pion-demo-0123abcd-12-0123abcd-head", change=change)
    (pod,) = list_pods()
    assert pod.created == created


def test_runpods_list_says_what_each_pod_is_and_costs(runpod_api):
    runpod_api.rent("a", "pion-demo-0123abcd-12-0123abcd-head", "EXITED")
    (pod,) = list_pods()
    assert pod == Pod("a", "pion-demo-0123abcd-12-0123abcd-head", "EXITED", "A40", 0.2)
    assert (pod.alive, pod.job_id, pod.rented_from) == (False, 12, ME)


@pytest.mark.parametrize("name", ["my-web-server", "pion", "pion-demo-head", "pion-demo-x-1-head"])
def test_a_pod_with_another_name_belongs_to_no_job(name):
    assert Pod("a", name, "RUNNING").job_id is None


def test_a_key_that_runpod_refuses_is_reported_but_not_shown(runpod_api):
    runpod_api.status = 401
    with pytest.raises(
        PionError, match=r"does not accept this machine's key.*`runpod config`"
    ) as e:
        list_pods()
    assert API_KEY not in str(e.value)


@pytest.mark.parametrize("status", [200, 402, 502])
@pytest.mark.parametrize(
    "body", ["", "<html>busy</html>", "null", "{}", '{"data": {"myself": null}}', "[1]"]
)
def test_an_answer_that_is_not_the_apis_is_an_outage_and_no_bug(runpod_api, status, body):
    runpod_api.status, runpod_api.body = status, body
    with pytest.raises(PionError, match=r"list the pods: its answer can't be read.*again in some"):
        list_pods()


@pytest.mark.parametrize(
    "pods", ["null", '[{"name": "no id"}]', "[null]", '[{"id": "a", "costPerHr": "much"}]']
)
def test_a_list_that_is_damaged_is_an_outage_and_no_bug(runpod_api, pods):
    runpod_api.body = f'{{"data": {{"myself": {{"pods": {pods}}}}}}}'
    with pytest.raises(PionError, match="its answer can't be read"):
        list_pods()


def test_pods_of_the_same_job_number_on_another_computer_can_be_told_apart(runpod_api):
    runpod_api.rent("mine", f"{CLUSTER}-{ME}-head")
    runpod_api.rent("theirs", f"{CLUSTER}-{ANOTHER}-head")
    assert [pod.id for pod in list_pods(rented_from=ME)] == ["mine"]
    assert len(list_pods()) == 2


# ---------------------------------------------------------------- the end of a pod


def test_a_pod_that_is_already_gone_is_no_error(runpod_api):
    runpod_api.rent("a", "pion-demo-0123abcd-12-0123abcd-head")
    terminate_pod("a")
    terminate_pod("a")
    assert runpod_api.ids == []


def test_a_pod_that_can_not_be_ended_is_an_error(runpod_api):
    runpod_api.error = "pod is locked"
    with pytest.raises(PionError, match="pod is locked"):
        terminate_pod("a")

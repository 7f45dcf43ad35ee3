"""A cloud's notice arrives once, and no fault of a metadata service harms the run."""

import queue
import re
import threading
import time
from pathlib import Path

import pytest

from pipeline.console.messages import MachineNotice
from pipeline.machine.preemption import (
    AT_LEAST,
    AWS_DISABLED,
    AWS_ENDPOINT,
    GCP_HOST,
    cloud_here,
    watch_for_notices,
)
from pipeline.training.cadence import SPARE_SECONDS
from pipeline.workers.lifeline import Lifeline, LifelineServer
from pipeline.workers.ray_fit import watch_machine
from tests.support.metadata_server import metadata_server
from tests.support.waiting import wait_until
from tests.support.whole_runs import ends_with, newest, start, wait_for, write_job

ACTION = "/latest/meta-data/spot/instance-action"


@pytest.fixture
def cloud():
    with metadata_server() as served:
        yield served


@pytest.fixture
def on_aws(cloud, monkeypatch):
    """Let this process and its children be on a machine of AWS."""
    for name, value in cloud.aws_environment().items():
        monkeypatch.setenv(name, value)
    return cloud


@pytest.fixture(autouse=True)
def _on_no_cloud(monkeypatch):
    for name in (AWS_ENDPOINT, AWS_DISABLED, GCP_HOST):
        monkeypatch.delenv(name, raising=False)


class Watch:
    """A watch of `cloud` that keeps its notices and messages."""

    def __init__(self, **environment):
        self.notices = queue.Queue()
        self.said = []
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            stop = watch_for_notices(
                lambda text, seconds: self.notices.put((text, seconds)),
                self.said.append,
                every=0.02,
                dmi=Path("/nonexistent"),
            )
        assert stop is not None
        self.stop = stop

    def notice(self):
        return self.notices.get(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def not_found(cloud, times=1):
    """Return a condition: AWS was queried that often, without a notice."""
    return lambda: cloud.asked.count(("GET", ACTION, 404)) >= times


def watch_has_ended():
    return not any(thread.name == "preemption" for thread in threading.enumerate())


def test_aws_notice_says_how_many_seconds_are_left(cloud):
    with Watch(**cloud.aws_environment()) as watch:
        wait_until(not_found(cloud), "AWS to be asked")
        assert watch.notices.empty()
        cloud.interrupt("terminate", seconds=100)
        text, seconds = watch.notice()
    assert 60 < seconds <= 100
    assert text.startswith("AWS will take this machine in ")
    assert "(terminate)" in text


def test_a_notice_is_given_once_and_the_service_asked_no_more(cloud):
    cloud.interrupt("stop", seconds=100)
    with Watch(**cloud.aws_environment()) as watch:
        watch.notice()
        wait_until(watch_has_ended, "the watch to end")
    assert watch.notices.empty()
    assert [status for method, _, status in cloud.asked if method == "GET"] == [200]


@pytest.mark.parametrize(("seconds", "assumed"), [(100_000, 120), (-100_000, AT_LEAST)])
def test_a_clock_that_is_off_changes_the_seconds_left_within_bounds(cloud, seconds, assumed):
    cloud.interrupt("terminate", seconds)
    with Watch(**cloud.aws_environment()) as watch:
        assert watch.notice()[1] == assumed


def test_an_expired_token_is_replaced(cloud):
    with Watch(**cloud.aws_environment()) as watch:
        wait_until(not_found(cloud), "AWS to be asked")
        cloud.tokens.clear()
        wait_until(lambda: ("GET", ACTION, 401) in cloud.asked, "the token to be refused")
        cloud.interrupt("terminate", seconds=100)
        watch.notice()
    assert watch.said == []
    assert len([path for method, path, _ in cloud.asked if method == "PUT"]) == 2


def test_a_rebalance_recommendation_is_no_notice_and_one_token_serves_many_questions(cloud):
    cloud.rebalance = True
    with Watch(**cloud.aws_environment()) as watch:
        wait_until(not_found(cloud, times=5), "AWS to be asked five times")
        assert watch.notices.empty()
    assert [method for method, _, _ in cloud.asked].count("PUT") == 1


def test_google_cloud_notice_leaves_30_seconds(cloud):
    with Watch(**cloud.gcp_environment()) as watch:
        wait_until(lambda: len(cloud.asked) >= 2, "Google Cloud to be asked twice")
        assert watch.notices.empty()
        cloud.preempted = True
        assert watch.notice() == ("Google Cloud will take this machine in 30 s (preempted)", 30)


@pytest.mark.parametrize(
    "trouble",
    [
        {"failing": True},
        {"refusing_tokens": True},
        {"action": "<html>log in to this network first</html>"},
        {"action": "[]"},
        {"action": '{"action": "terminate"}'},
        {"action": '{"action": "terminate", "time": "soon"}'},
        {"action": '{"action": "terminate", "time": null}'},
    ],
)
def test_trouble_of_the_service_is_said_once_and_a_later_notice_still_heard(cloud, trouble):
    vars(cloud).update(trouble)
    with Watch(**cloud.aws_environment()) as watch:
        wait_until(lambda: len(cloud.asked) >= 6, "AWS to be asked six times")
        assert watch.notices.empty()
        cloud.failing = cloud.refusing_tokens = False
        cloud.interrupt("terminate", seconds=100)
        watch.notice()
    [said] = watch.said
    assert said.startswith("Pion can't ask AWS's metadata service")


def test_a_service_that_is_not_there_is_trouble_too():
    with metadata_server() as gone:
        nowhere = gone.gcp_environment()
    with Watch(**nowhere) as watch:
        wait_until(lambda: watch.said, "the watch to complain")
        assert watch.notices.empty()


def test_the_proxy_of_the_environment_is_not_asked(cloud, monkeypatch):
    with metadata_server() as proxy:
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        cloud.preempted = True
        with Watch(**cloud.gcp_environment()) as watch:
            watch.notice()
        assert proxy.asked == []


def test_a_worker_on_another_machine_tells_the_driver_of_a_notice(on_aws):
    heard = queue.Queue()
    server = LifelineServer("127.0.0.1", lambda rank, message: heard.put((rank, message)))
    line = Lifeline(server.address, rank=3)
    on_aws.interrupt("terminate", seconds=100)
    end_watch = watch_machine(3, line)
    rank, notice = heard.get(timeout=60)
    assert isinstance(notice, MachineNotice)
    assert notice.text.startswith("the machine of worker 3: AWS will take this machine in ")
    assert (rank, 60 < notice.seconds <= 100) == (3, True)
    assert end_watch is not None
    end_watch()
    line.close()
    server.close()


def test_a_stopped_watch_asks_no_more_and_gives_no_notice(cloud):
    watch = Watch(**cloud.gcp_environment())
    wait_until(lambda: cloud.asked, "Google Cloud to be asked")
    watch.stop()
    wait_until(watch_has_ended, "the watch to end")
    asked = len(cloud.asked)
    cloud.preempted = True
    assert len(cloud.asked) == asked
    assert watch.notices.empty()


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("sys_vendor", "Amazon EC2\n", "AWS"),
        ("board_vendor", "Amazon EC2\n", "AWS"),
        ("product_name", "Google Compute Engine\n", "Google Cloud"),
    ],
)
def test_the_firmware_tells_which_cloud_this_is(tmp_path, file, text, name):
    (tmp_path / file).write_text(text)
    assert cloud_here(tmp_path).name == name


def test_in_no_cloud_nothing_is_watched(tmp_path):
    (tmp_path / "sys_vendor").write_text("LENOVO\n")
    (tmp_path / "product_name").write_bytes(b"\xff\xfe")
    threads = threading.active_count()
    assert watch_for_notices(lambda *_: None, dmi=tmp_path) is None
    assert threading.active_count() == threads


def test_metadata_switched_off_for_aws_clients_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setenv(AWS_DISABLED, "true")
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    assert cloud_here(tmp_path) is None


def test_a_run_that_is_given_short_notice_saves_the_step_it_is_at_and_ends_with_exit_75(
    tmp_path, on_aws
):
    job = write_job(tmp_path, sft=None, pretrain__steps=5000, log__every=20)
    process = start(job, "checkpoint.every_steps=1000000")  # so that only the notice saves
    wait_for(process, "pretrain step 40/")
    on_aws.interrupt("terminate", seconds=50)
    output = ends_with(75, process)
    assert re.search(r"Interrupted \(AWS will take this machine in \d+ s \(terminate\)\)", output)
    assert newest(tmp_path).step >= 40


@pytest.mark.soak
def test_a_run_trains_on_after_a_notice_of_75_seconds_and_leaves_10_seconds_before_the_end(
    tmp_path, on_aws
):
    job = write_job(tmp_path, sft=None, pretrain__steps=500_000, log__every=100)
    process = start(job, "checkpoint.every_steps=100")
    wait_for(process, "pretrain step 200/")
    on_aws.interrupt("terminate", 75)
    end = time.monotonic() + 75
    noticed = wait_for(process, "Training continues, and stops in time for the last save")
    before = [int(step) for step in re.findall(r"pretrain step ([\d,]+)/", noticed)]
    output = ends_with(75, process)
    assert time.monotonic() < end - SPARE_SECONDS
    steps = [int(step.replace(",", "")) for step in re.findall(r"step ([\d,]+)/", output)]
    assert steps[-1] > max(before, default=200), "training went on after the notice"
    assert newest(tmp_path).step >= steps[-1]
    assert "every finished step is saved" in output

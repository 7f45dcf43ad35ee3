"""A real search that is killed with SIGKILL ends like one that is not."""

import json
import sys
import time

import pytest

from tests.support.waiting import LONG_SECONDS, kill_tree, read_until, rest_of
from tests.support.whole_runs import open_process, write_job

pytestmark = pytest.mark.soak

SEARCH = ("try", "--vary", "pretrain.lr=2e-3,1e-2,2e-2")
SEARCH_OF_PHASES = (
    "try",
    "data.sources=[{name: web, kind: text, path: text, split: paragraph}, "
    "{name: talks, kind: text, path: text, split: paragraph}]",
    "pretrain.phases=[{until: 12, mix: {web: 1}}, {mix: {web: 2, talks: 1}}]",
    *("--seeds", "2", "--vary", "pretrain.phases.1.mix={web: 1},{web: 2, talks: 1}"),
)


LAUNCH = {
    "PION_LAUNCH_ID": "a" * 32,
    "SKYPILOT_TASK_ID": "sky-managed-1",
    "SKYPILOT_NUM_GPUS_PER_NODE": "0",
    "PION_PRICES": '{"CPU": 0.5}',
}


def start(folder, command, *options):
    job = write_job(folder, sft=None)
    line = [sys.executable, "-u", "-m", "pipeline.cli", command, str(job), *options, "--json"]
    return open_process(line, folder)


def killed_after(line, folder, *command):
    """Start the command, and kill it with all its processes after it has said `line`."""
    process = start(folder, *command)
    read_until(process, line, seconds=LONG_SECONDS)
    kill_tree(process.pid)
    process.wait(LONG_SECONDS)


def finished(folder, *command):
    """Run the command to its end, and return its JSON."""
    process = start(folder, *command)
    output = rest_of(process, seconds=LONG_SECONDS)
    assert process.returncode == 0, output
    return json.loads(output[output.rindex("\n{\n") :])


def whole_and_broken(folder, lines, *command):
    """Return what the command says without a kill, and after one kill at each of the lines."""
    for name in ("whole", "broken"):
        (folder / name).mkdir()
    whole = finished(folder / "whole", *command)
    for line in lines:
        killed_after(line, folder / "broken", *command)
    return whole, finished(folder / "broken", *command)


@pytest.mark.parametrize(
    ("lines", "command"),
    [
        (("seed=43, to step 2", "to step 20: 2 runs"), SEARCH),
        (("the trunk, seed=43, to step 12", "{web: 1}, seed=43, to step 20"), SEARCH_OF_PHASES),
    ],
)
def test_a_search_that_is_killed_twice_makes_the_same_choice(tmp_path, lines, command):
    whole, broken = whole_and_broken(tmp_path, lines, *command)
    assert {k: v for k, v in broken.items() if k not in ("hours", "command")} == {
        k: v for k, v in whole.items() if k not in ("hours", "command")
    }


@pytest.mark.soak
def test_the_next_machine_ends_the_search_of_a_killed_one_and_each_is_paid_once(
    tmp_path, monkeypatch
):
    for name, value in LAUNCH.items():
        monkeypatch.setenv(name, value)
    began = time.time()
    whole, broken = whole_and_broken(tmp_path, ("seed=43, to step 2",), *SEARCH)
    assert broken["choice"] == whole["choice"]
    assert whole["hours"] <= (time.time() - began) / 3600
    assert broken["dollars"] == pytest.approx(0.5 * broken["hours"])

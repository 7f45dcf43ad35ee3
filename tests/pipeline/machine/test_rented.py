"""A rented machine knows what it is, when paying for it began and what it costs."""

import ast
import importlib.util
import json
import os
import socket
import stat
import time
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.machine import rented as machines
from pipeline.machine.gpus import sky_names
from pipeline.machine.rented import (
    LONGEST_BOOT,
    PAID_SINCE,
    claim_event,
    rental_price,
    rented_since,
    this_machine,
)
from pipeline.state import owner
from pipeline.state.owner import Owner
from tests.paths import REPOSITORY

BOOTED = 1_700_000_000
POD_UP = BOOTED + 500.0  # when process 1 of the container started
INFO = {"cluster_name": "pion-demo-1", "cloud": "RunPod", "region": "CA", "zone": "CA-MTL-1"}
RENTED = {
    "SKYPILOT_TASK_ID": "sky-managed-1",
    "SKYPILOT_MANAGED_JOB_ID": "7",
    "SKYPILOT_NUM_GPUS_PER_NODE": "1",
    "SKYPILOT_CLUSTER_INFO": json.dumps(INFO),
    "PION_BOOT_STARTED": str(POD_UP + 40),
    "PION_BOOT_CHECKED": str(POD_UP + 42),
    "PION_BOOT_SYNCED": str(POD_UP + 70),
}
STARTED = POD_UP + 72.5


@pytest.fixture
def proc(tmp_path):
    """Write what /proc says in a container of this age whose process 1 RunPod started."""
    ticks = int((POD_UP - BOOTED) * os.sysconf("SC_CLK_TCK"))
    fields = ["S", *["0"] * 18, str(ticks), "0"]
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "stat").write_text(f"1 (sleep (infinity) x) {' '.join(fields)}\n")
    told = "HOME=/root\0RUNPOD_POD_ID=pod123\0RUNPOD_GPU_NAME=NVIDIA+RTX+A4000\0RUNPOD_X=a=b\0"
    (tmp_path / "1" / "environ").write_text(told)
    (tmp_path / "stat").write_text(f"cpu 1 2\nbtime {BOOTED}\nprocesses 9\n")
    (tmp_path / "sys/kernel/random").mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("0123456789abcdef\n")
    return tmp_path


@pytest.fixture(autouse=True)
def no_driver(monkeypatch):
    """Hide nvidia-smi, unless a test puts one here."""
    monkeypatch.setenv("PATH", "/nowhere")
    machines._gpu_names.cache_clear()


def install_driver(folder, monkeypatch, *gpus):
    script = folder / "nvidia-smi"
    lines = "".join(f"echo '{gpu}'\n" for gpu in gpus)
    script.write_text(f"#!/bin/sh\n{lines}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    machines._gpu_names.cache_clear()


# ---------------------------------------------------------------- what it is


def test_a_machine_at_home_is_not_rented(proc):
    assert this_machine(STARTED, {}, proc) is None
    assert this_machine(STARTED, {"PION_LAUNCH_ID": "mine", "SKYPILOT_TASK_ID": ""}, proc) is None


def test_a_managed_jobs_machine_says_what_skypilot_and_runpod_know_of_it(proc):
    machine = this_machine(STARTED, RENTED, proc)
    assert (machine.id, machine.gpu, machine.count, machine.nodes) == ("pod123", "RTXA4000", 1, 1)
    assert (machine.cloud, machine.region, machine.zone) == ("RunPod", "CA", "CA-MTL-1")
    assert (machine.managed_job, machine.cluster) == ("7", "pion-demo-1")
    assert (machine.host, machine.spot) == (socket.gethostname(), None)


def test_the_launcher_says_whether_it_may_be_taken_away(proc):
    spot, kept = (this_machine(STARTED, {**RENTED, "PION_SPOT": v}, proc) for v in "10")
    assert (spot.spot, kept.spot) == (True, False)


def test_a_pod_rented_by_hand_is_a_rental_too(proc):
    by_hand = {"RUNPOD_POD_ID": "mine", "RUNPOD_DC_ID": "EU-SE-1", "RUNPOD_GPU_COUNT": "2"}
    machine = this_machine(STARTED, by_hand, proc)
    assert (machine.id, machine.cloud, machine.region) == ("mine", "RunPod", "EU-SE-1")
    assert (machine.count, machine.managed_job) == (2, None)


def test_on_another_cloud_a_machine_is_its_cluster_in_one_boot(proc):
    (proc / "1" / "environ").write_text("HOME=/root\0")
    info = {**INFO, "cloud": "AWS", "region": "us-east-1"}
    machine = this_machine(STARTED, {**RENTED, "SKYPILOT_CLUSTER_INFO": json.dumps(info)}, proc)
    assert (machine.id, machine.cloud) == ("pion-demo-1:01234567", "AWS")


@pytest.mark.parametrize("info", ["", "not json", "[1]", "{}"])
def test_what_skypilot_does_not_say_is_unknown_and_ends_nothing(proc, info):
    (proc / "1" / "environ").unlink()
    machine = this_machine(STARTED, {**RENTED, "SKYPILOT_CLUSTER_INFO": info}, proc)
    assert (machine.cloud, machine.region, machine.gpu) == (None, None, None)
    assert machine.id == f"{socket.gethostname()}:01234567"


def test_its_event_is_plain_json_with_everything_that_costs_are_counted_from(proc):
    claimed = {"session": "session", "started": POD_UP, "reason": "it was released"}
    event = claim_event(this_machine(STARTED, RENTED, proc), 0.2, **claimed)
    assert json.loads(json.dumps(event)) == event
    fields = "id cloud region gpu count spot price host rented_at managed_job phases session"
    assert set(fields.split()) <= event.keys()
    assert (event["event"], event["price"], event["rented_at"]) == ("machine", 0.2, POD_UP)
    home = claim_event(None, None, **claimed)
    assert (home["event"], home["host"], home["started_at"]) == (
        "process",
        socket.gethostname(),
        POD_UP,
    )


# ---------------------------------------------------------------- since when


def test_it_is_paid_for_since_its_first_process_started_and_each_part_of_the_boot_is_known(proc):
    machine = this_machine(STARTED, RENTED, proc)
    assert machine.rented_at == POD_UP
    assert machine.phases == {"machine up": 40, "checks": 2, "install": 28, "pion started": 2.5}
    assert sum(machine.phases.values()) == STARTED - POD_UP


@pytest.mark.parametrize("value", ["", "soon", "nan", "-5", str(STARTED + 9), str(POD_UP - 9)])
def test_a_moment_that_is_missing_or_impossible_is_part_of_the_next_phase(proc, value):
    machine = this_machine(STARTED, {**RENTED, "PION_BOOT_CHECKED": value}, proc)
    assert machine.phases == {"machine up": 40, "install": 30, "pion started": 2.5}


def test_it_is_never_paid_for_from_later_than_the_run_scripts_first_line(proc):
    late = {**RENTED, "PION_BOOT_STARTED": str(POD_UP - 3)}
    assert rented_since(STARTED, late, proc) == POD_UP - 3
    assert rented_since(STARTED, RENTED, proc / "not there") == POD_UP + 40
    assert rented_since(STARTED, {}, proc / "not there") == STARTED


def test_it_is_paid_for_since_the_moment_that_it_is_told(proc):
    for told, since in ((STARTED - 9000, STARTED - 9000), (STARTED + 9, POD_UP), ("soon", POD_UP)):
        assert rented_since(STARTED, {**RENTED, PAID_SINCE: str(told)}, proc) == since


def test_a_machine_that_had_been_up_for_long_was_rented_for_something_else(proc):
    begun = POD_UP + LONGEST_BOOT + 1
    later = {**RENTED, "PION_BOOT_STARTED": str(begun)}
    assert rented_since(begun + 30, later, proc) == begun
    machine = this_machine(begun + 30, later, proc)
    assert machine.phases["machine up"] == 0.0


def test_on_this_very_machine_process_1_did_not_start_in_the_future():
    now = time.time()
    up = machines._start_of_process_1(Path("/proc"))
    assert 0 < up < now


def test_an_owner_on_a_rental_costs_since_then_and_at_home_since_it_began(monkeypatch):
    for sign in machines.SIGNS:
        monkeypatch.delenv(sign, raising=False)
    monkeypatch.setattr(owner, "_paid_since", owner._paid_since.__wrapped__)
    assert Owner.me().started_at == owner._STARTED_AT
    monkeypatch.setenv("SKYPILOT_TASK_ID", "t")
    monkeypatch.setenv("PION_BOOT_STARTED", str(owner._STARTED_AT - 60))
    assert Owner.me().started_at <= owner._STARTED_AT - 60


# ---------------------------------------------------------------- code


@pytest.mark.parametrize(
    ("dirty", "found"), [("0123", ("c" * 40, "0123")), ("", ("c" * 40, None)), (None, (None, None))]
)
def test_code_without_a_checkout_is_the_commit_it_was_launched_from(monkeypatch, dirty, found):
    monkeypatch.setattr(owner, "checkout", lambda root: (None, None))
    for name in ("PION_COMMIT", "PION_DIRTY"):
        monkeypatch.delenv(name, raising=False)
    if dirty is not None:
        monkeypatch.setenv("PION_COMMIT", "c" * 40)
        monkeypatch.setenv("PION_DIRTY", dirty)
    monkeypatch.setattr(owner, "code_version", owner.code_version.__wrapped__)
    assert (Owner.me().commit, Owner.me().dirty) == found


def test_a_checkout_says_its_own_commit_whatever_it_was_launched_from(monkeypatch):
    if not (REPOSITORY / ".git").exists():
        pytest.skip("these tests don't run from a checkout")
    monkeypatch.setenv("PION_COMMIT", "c" * 40)
    monkeypatch.setenv("PATH", os.defpath)
    assert owner.code_version.__wrapped__().commit not in (None, "c" * 40)


# ---------------------------------------------------------------- price


def test_the_price_is_the_launchers_for_this_kind_of_gpu(proc):
    prices = {**RENTED, "PION_PRICES": '{"A40": 0.4, "RTXA4000": 0.22}'}
    assert rental_price(prices, proc) == 0.22
    assert rental_price({**prices, "PION_DOLLARS_PER_HOUR": "0.3"}, proc) == 0.3
    assert rental_price({**prices, "SKYPILOT_NUM_NODES": "2"}, proc) == 0.44
    assert rental_price({**RENTED, "PION_PRICES": '{"A40": 0.4, "L4": 1}'}, proc) is None
    assert rental_price({**RENTED, "PION_PRICES": ""}, proc) is None
    assert rental_price({}, proc) is None


def test_the_price_is_that_of_the_place_where_the_machine_is(proc):
    prices = '{"RTXA4000": 0.22, "RTXA4000 on RunPod/CA": 0.3, "RTXA4000 on RunPod/SE": 0.5}'
    rented = {**RENTED, "PION_PRICES": prices}
    assert rental_price(rented, proc) == 0.3
    elsewhere = json.dumps({**INFO, "region": "NO"})  # where it is cheapest
    assert rental_price({**rented, "SKYPILOT_CLUSTER_INFO": elsewhere}, proc) == 0.22
    assert rental_price({**rented, "SKYPILOT_CLUSTER_INFO": ""}, proc) == 0.22
    (proc / "1" / "environ").unlink()
    assert rental_price(rented, proc) == 0.3, "one kind to choose from, so it is this"


def test_the_driver_is_asked_where_the_provider_does_not_say_the_gpu(proc, tmp_path, monkeypatch):
    install_driver(tmp_path, monkeypatch, "NVIDIA A40", "NVIDIA A40")
    (proc / "1" / "environ").unlink()
    several = {k: v for k, v in RENTED.items() if "NUM_GPUS" not in k}
    machine = this_machine(STARTED, several, proc)
    assert (machine.gpu, machine.count) == ("A40", 2)
    assert rental_price({**several, "PION_PRICES": '{"A40": 0.4, "CPU": 0.1}'}, proc) == 0.4


def test_a_rental_without_a_gpu_costs_what_a_cpu_does(proc):
    (proc / "1" / "environ").unlink()
    no_gpu = {**RENTED, "SKYPILOT_NUM_GPUS_PER_NODE": "0"}
    assert rental_price({**no_gpu, "PION_PRICES": '{"CPU": 0.1, "A40": 1}'}, proc) == 0.1
    assert rental_price({**no_gpu, "PION_PRICES": '{"A40": 1}'}, proc) is None


def test_an_unknown_gpu_costs_the_only_price_there_is_or_an_unknown_one(proc):
    (proc / "1" / "environ").unlink()
    assert rental_price({**RENTED, "PION_PRICES": '{"A40": 0.4}'}, proc) == 0.4
    assert rental_price({**RENTED, "PION_PRICES": '{"A40": 0.4, "L4": 1}'}, proc) is None


@pytest.mark.parametrize(
    "text", ["cheap", "{", "[0.4]", '{"A40": -1}', '{"A40": "free"}', '{"A40": true}', "0.4"]
)
def test_prices_that_are_no_amounts_by_gpu_are_refused(proc, text):
    with pytest.raises(BadInput, match=r"PION_PRICES is .*must be a JSON object.*Nothing was"):
        rental_price({**RENTED, "PION_PRICES": text}, proc)


@pytest.mark.parametrize(
    ("driver", "runpod", "elsewhere"),
    [
        ("NVIDIA A40", "A40", "A40"),
        ("Tesla T4", "T4", "T4"),
        ("NVIDIA RTX A4000", "RTXA4000", "RTXA4000"),
        ("NVIDIA GeForce RTX 3080 Ti", "RTX3080Ti", "RTX3080Ti"),
        ("NVIDIA GeForce RTX 4080 SUPER", "RTX4080SUPER", "RTX4080SUPER"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX6000-Ada", "RTX6000-Ada"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "RTX4000-Ada-SFF", "RTX4000-Ada-SFF"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTXPRO6000", "RTXPRO6000"),
        (
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
            "RTXPRO6000-MaxQ",
            "RTXPRO6000",
        ),
        ("NVIDIA A100 80GB PCIe", "A100-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM", "H100"),
    ],
)
def test_a_gpu_is_called_as_skypilot_calls_it(driver, runpod, elsewhere):
    names = sky_names(driver)
    assert (names[0], names[-1]) == (runpod, elsewhere)


def test_skypilots_own_names_of_runpods_gpus_are_ours():
    found = importlib.util.find_spec("sky")
    places = found.submodule_search_locations if found else None
    files = [Path(place) / "provision" / "runpod" / "utils.py" for place in places or ()]
    source = next((file.read_text() for file in files if file.exists()), None)
    if source is None:
        pytest.skip("SkyPilot is not installed")
    # Read, not imported, because the import takes ten seconds.
    (names,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "GPU_NAME_MAP"
    )
    drivers = {name: driver for name, driver in names.items() if not driver.startswith("AMD")}
    assert len(drivers) > 30
    assert [name for name, driver in drivers.items() if name not in sky_names(driver)] == []

"""The YAMLs in sky/: SkyPilot reads them, and would rent what their comments promise."""

import os
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context

import pytest
import yaml

from pion.errors import BadInput, Fenced, Interrupted, NotDurable, PionError, Stopped
from tests.paths import RENTALS, SKY
from tests.support.sky_catalog import GPU_MEMORY_GIB, PRICES, Price, write_catalog
from tests.support.waiting import PATIENCE_SECONDS

YAMLS = [path.name for path in RENTALS]
YAMLS_WITH_A_LIST = (
    "runpod-spot.yaml",
    "runpod-deadline.yaml",
    "cloud-spot.yaml",
    "multi-node.yaml",
    "cpu-prepare.yaml",
)
# tests/sky/test_bench_yaml.py has the rest about this one.
BENCH = "bench.yaml"


@pytest.fixture(scope="module")
def dryrun(tmp_path_factory):
    """Return, by file, what `sky launch --dryrun` would rent at these prices, in our own home.

    A fork asks: to import SkyPilot once more takes four seconds.
    """

    def run(paths, prices=PRICES, cloud="RunPod", cpu_prices=None):
        home = tmp_path_factory.mktemp("home")
        write_catalog(home, prices, cloud=cloud, cpu_prices=cpu_prices)
        import sky.optimizer  # noqa: F401

        with ProcessPoolExecutor(1, get_context("fork")) as fork:
            return fork.submit(_dry_run, paths, cloud, home).result(PATIENCE_SECONDS)

    return run


def _dry_run(paths, cloud, home):
    """Return what the API server chooses on `sky launch --dryrun`, without the server."""
    from sky import check, exceptions, global_user_state, optimizer
    from sky.catalog import common
    from sky.clouds.cloud import CloudCapability
    from sky.utils import accelerator_registry, dag_utils

    os.environ |= {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    common._ABSOLUTE_VERSIONED_CATALOG_DIR = str(home / ".sky/catalogs/v8")
    accelerator_registry._accelerator_df = common.read_catalog("common/accelerators.csv")
    catalog = import_module(f"sky.catalog.{cloud.lower()}_catalog")
    catalog._df = common.read_catalog(f"{cloud.lower()}/vms.csv")
    # The state that `sky check` leaves, so that no credentials are checked.
    global_user_state.set_enabled_clouds([cloud], CloudCapability.COMPUTE, "default")
    allowed = check._get_workspace_allowed_clouds("default")
    global_user_state.set_allowed_clouds(allowed, "default")
    answers = {}
    for path in paths:
        task = _load(path)
        try:
            chosen = optimizer.Optimizer.optimize(dag_utils.convert_entrypoint_to_dag(task))
        except exceptions.ResourcesUnavailableError as error:
            answers[path.name] = {"unavailable": str(error)}
            continue
        best = chosen.tasks[0].best_resources
        answers[path.name] = {
            "gpus": best.accelerators,
            "use_spot": best.use_spot,
            "price": round(best.get_cost(3600), 4),
            "nodes": task.num_nodes,
        }
    return answers


@pytest.fixture(scope="module")
def rented(dryrun):
    """Return what each YAML would rent at the usual prices."""
    single = [SKY / name for name in (*YAMLS, BENCH) if name != "multi-node.yaml"]
    several = dryrun([SKY / "multi-node.yaml"], {"A10": Price(None, 0.75)}, "Lambda")
    # For these prices, SkyPilot would take any machine with a GPU before one without.
    return dryrun(single, cpu_prices={"cpu3c-4-8": 0.1, "cpu3c-8-16": 5.0}) | several


@pytest.mark.parametrize(
    ("name", "gpu", "use_spot", "price"),
    [
        ("runpod-a40.yaml", "A40", False, 0.40),
        ("runpod-a4000.yaml", "RTXA4000", False, 0.25),
        ("runpod-spot.yaml", "A40", True, 0.20),
        ("runpod-deadline.yaml", "A40", True, 0.20),
        ("cloud-spot.yaml", "RTXA4000", True, 0.22),
        ("multi-node.yaml", "A10", False, 0.75),
        (BENCH, "A40", False, 0.40),
    ],
)
def test_a_dry_run_picks_the_expected_machine(rented, name, gpu, use_spot, price):
    assert rented[name]["gpus"] == {gpu: 1}
    assert rented[name]["use_spot"] is use_spot
    assert rented[name]["price"] == price, "dollars an hour, of one node"
    assert rented[name]["nodes"] == (2 if name == "multi-node.yaml" else 1)


def test_a_machine_that_prepares_has_no_gpu_even_if_a_gpu_is_cheaper(rented):
    machine = rented["cpu-prepare.yaml"]
    assert machine["gpus"] is None
    assert (machine["use_spot"], machine["price"], machine["nodes"]) == (False, 5.0, 1)
    assert _read("cpu-prepare.yaml")["envs"]["PION_UNTIL"] == "prepare"


def test_on_demand_is_rented_instead_of_spot_only_by_choice(dryrun, tmp_path):
    no_spot = {"A40": Price(None, 0.40), "RTXA4000": Price(None, 0.25)}
    text = (SKY / "runpod-spot.yaml").read_text()
    chosen = tmp_path / "chosen.yaml"
    chosen.write_text(text.replace("    # - acc", "    - acc").replace("    #   use", "      use"))
    answers = dryrun([SKY / "runpod-spot.yaml", chosen], no_spot)
    assert "unavailable" in answers["runpod-spot.yaml"]
    assert answers["chosen.yaml"]["gpus"] == {"RTXA4000": 1}
    assert answers["chosen.yaml"]["use_spot"] is False


@pytest.mark.parametrize("name", YAMLS)
def test_skypilot_accepts_it_with_a_job(name):
    task = _load(name)
    assert task.envs["JOB"] == "jobs/demo.yaml"
    for resources in task.resources:
        assert resources.job_recovery["strategy"] == "EAGER_NEXT_REGION"
        assert resources.job_recovery["max_restarts_on_errors"] == 0
        assert not resources.ports, "nobody outside talks to a run"


@pytest.mark.parametrize("name", YAMLS)
def test_skypilot_refuses_it_without_a_job(name):
    from sky.task import Task

    with pytest.raises(ValueError, match="JOB"):
        Task.from_yaml(str(SKY / name))


@pytest.mark.parametrize("name", YAMLS)
def test_a_bad_host_is_left_a_bad_job_is_not_and_no_secret_is_in_the_file(name):
    config = _read(name)
    # Only what another machine can repair is recovered.
    recovered = config["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert recovered == [Interrupted.exit_code]
    for final in (PionError, BadInput, Fenced, Stopped, NotDurable):
        assert final.exit_code not in recovered
    assert "setup" not in config, "SkyPilot recovers no job whose setup fails"
    assert config["run"] == "exec bash sky/boot.sh"
    disk = str(config["resources"]["disk_size"])
    assert config["envs"]["PION_DISK_GB"] == disk, "the boot check looks for it"
    assert set(config["secrets"].values()) == {""}


def test_every_gpu_of_the_spot_yamls_has_16_gb_or_more():
    for name in ("runpod-spot.yaml", "runpod-deadline.yaml", "cloud-spot.yaml"):
        for resources in _load(name).resources:
            (gpu,) = resources.accelerators
            assert GPU_MEMORY_GIB[gpu] >= 16


def test_a_deadline_has_several_types_to_wait_for_and_several_on_demand():
    machines = [
        (next(iter(resources.accelerators)), resources.use_spot)
        for resources in _load("runpod-deadline.yaml").resources
    ]
    assert len({gpu for gpu, spot in machines if spot}) >= 2
    assert len({gpu for gpu, spot in machines if not spot}) >= 2
    ways = [spot for _, spot in machines]
    assert ways == sorted(ways, reverse=True), "without a deadline, spot is tried first"


def test_managed_jobs_keep_the_order_of_the_gpus():
    """SkyPilot tries a set (`any_of`, a mapping) in an arbitrary order for a managed job."""
    for name in YAMLS_WITH_A_LIST:
        assert isinstance(_load(name).resources, list)


def _load(name):
    """Return the task that SkyPilot reads from the YAML, with a job."""
    from sky.task import Task

    return Task.from_yaml_config(_read(name), env_overrides=[("JOB", "jobs/demo.yaml")])


def _read(name):
    return yaml.safe_load((SKY / name).read_text())

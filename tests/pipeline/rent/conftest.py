"""SkyPilot in its own home folder, with our price list and a RunPod that lists no pods."""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pion.formats import load
from pipeline.state.stores import FileStore
from tests.support.light_run import light_run
from tests.support.runpod_api import API_KEY, CONFIG, RunPodApi, serve_runpod
from tests.support.sky_catalog import PRICES, write_catalog

YAML = """
resources:
  infra: runpod
  disk_size: 60
{resources}
  job_recovery: {{strategy: EAGER_NEXT_REGION, recover_on_exit_codes: [75]}}
envs: {{JOB: null, OVERRIDES: ""}}
secrets: {{HF_TOKEN: "", AWS_ACCESS_KEY_ID: "", AWS_SECRET_ACCESS_KEY: ""}}
run: pion run "$JOB"
"""


@dataclass
class SkyHome:
    """SkyPilot as this process sees it during the test."""

    folder: Path
    patch: pytest.MonkeyPatch
    answers: dict[str, Any] = field(default_factory=dict)
    """What SkyPilot has found in the price list, by what it looked for."""

    def remember_answers(self):
        """Look up each question in the price list once. Each takes pandas milliseconds."""
        import sky.catalog

        ask = sky.catalog._map_clouds_catalog

        def answer(*args, **kwargs):
            question = repr((args, kwargs))
            if question not in self.answers:
                self.answers[question] = ask(*args, **kwargs)
            return copy.deepcopy(self.answers[question])

        self.patch.setattr(sky.catalog, "_map_clouds_catalog", answer)

    def sell(self, prices, regions=None):
        """Make `prices` RunPod's prices."""
        import sky.catalog.runpod_catalog
        from sky.catalog import common
        from sky.utils import accelerator_registry

        write_catalog(self.folder, prices, regions)
        folder = str(self.folder / ".sky" / "catalogs" / "v8")
        self.patch.setattr(common, "_ABSOLUTE_VERSIONED_CATALOG_DIR", folder)
        # SkyPilot caches what it has read for the life of the process.
        gpus, machines = (
            common.read_catalog(f) for f in ("common/accelerators.csv", "runpod/vms.csv")
        )
        self.patch.setattr(accelerator_registry, "_accelerator_df", gpus)
        self.patch.setattr(sky.catalog.runpod_catalog, "_df", machines)
        self.answers.clear()

    def raise_prices(self, region, factor):
        """Multiply all prices in `region` by `factor`."""
        import sky.catalog.runpod_catalog

        machines = sky.catalog.runpod_catalog._df
        machines.loc[machines["Region"] == region, ["SpotPrice", "Price"]] *= factor
        self.answers.clear()

    def lose_catalog(self):
        """Remove the price list, and make it impossible to fetch one."""
        import requests
        from sky.catalog import common

        def offline(*args, **kwargs):
            raise requests.ConnectionError("no route to host")

        (self.folder / ".sky/catalogs/v8/runpod/vms.csv").unlink()
        self.patch.setattr(common.requests, "get", offline)
        self.answers.clear()

    def yaml(self, resources="accelerators: A40", text=YAML):
        """Write a rental YAML with these lines under `resources`."""
        path = self.folder / "rental.yaml"
        indented = "\n".join(f"  {line}" for line in resources.splitlines())
        path.write_text(text.format(resources=indented))
        return path


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """Give the test its own cache folder, where processes of one machine see each other."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # A result of a card that is committed later must not change what these tests expect.
    monkeypatch.setattr("pipeline.rent.plan.speeds.shipped_results", list)


@pytest.fixture(autouse=True)
def _traces_are_recorded(recorded_traces):
    """Most of the time here would go to traces."""


@pytest.fixture
def sky_home(tmp_path, monkeypatch):
    """A home with a price list and nothing else. RunPod's API can't be reached."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    from sky import global_user_state, skypilot_config
    from sky.clouds import CloudCapability

    # Forget the settings of another test's home, and which clouds it had.
    skypilot_config.safe_reload_config()
    global_user_state.set_enabled_clouds([], CloudCapability.COMPUTE, "default")
    found = SkyHome(home, monkeypatch)
    found.sell(PRICES)
    found.remember_answers()
    return found


@pytest.fixture
def runpod_api(sky_home, monkeypatch):
    """A RunPod account without pods, and its key on this machine."""
    import runpod

    api = RunPodApi()
    (sky_home.folder / ".runpod").mkdir()
    (sky_home.folder / ".runpod/config.toml").write_text(CONFIG)
    monkeypatch.setattr(runpod, "api_key", API_KEY)
    with serve_runpod(api) as url:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", url)
        yield api


@pytest.fixture
def run(tmp_path, time):
    """A released run with work left, last claimed under epoch 2."""
    return light_run(FileStore(tmp_path / "runs"), clock=time.clock())


@pytest.fixture
def said():
    return []


@pytest.fixture(autouse=True)
def _placeholders_are_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published models of the tests have a number in place of weights that fit their settings."""
    fits = load.load_lazily
    small = lambda folder: (folder / "model.safetensors").stat().st_size < 200  # noqa: E731
    monkeypatch.setattr(load, "load_lazily", lambda path: None if small(path) else fits(path))

"""SkyPilot in a home of its own, with a price list of ours and a RunPod that lists no pods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline.rent.managed.watch import Watcher
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.clock import FakeClock
from tests.support.fake_provider import JOB, FakeProvider, watched_rental
from tests.support.light_run import light_run
from tests.support.runpod_api import API_KEY, CONFIG, RunPodApi, serve_runpod
from tests.support.sky_catalog import PRICES, Price, write_catalog

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
    """SkyPilot as this process sees it while the test runs."""

    folder: Path
    patch: pytest.MonkeyPatch

    def sell(self, prices: Mapping[str, Price], regions: Mapping[str, str] | None = None) -> None:
        """Make `prices` what RunPod asks."""
        import sky.catalog.runpod_catalog
        from sky.catalog import common
        from sky.utils import accelerator_registry

        write_catalog(self.folder, prices, regions)
        folder = str(self.folder / ".sky" / "catalogs" / "v8")
        self.patch.setattr(common, "_ABSOLUTE_VERSIONED_CATALOG_DIR", folder)
        # SkyPilot keeps what it has read as long as the process lives.
        gpus, machines = (
            common.read_catalog(f) for f in ("common/accelerators.csv", "runpod/vms.csv")
        )
        self.patch.setattr(accelerator_registry, "_accelerator_df", gpus)
        self.patch.setattr(sky.catalog.runpod_catalog, "_df", machines)

    def raise_prices(self, region: str, factor: float) -> None:
        """Make everything in `region` dearer by that factor than elsewhere."""
        import sky.catalog.runpod_catalog

        machines = sky.catalog.runpod_catalog._df
        machines.loc[machines["Region"] == region, ["SpotPrice", "Price"]] *= factor

    def lose_catalog(self) -> None:
        """There is no price list here, and none can be fetched."""
        import requests
        from sky.catalog import common

        def offline(*args: Any, **kwargs: Any) -> Any:
            raise requests.ConnectionError("no route to host")

        (self.folder / ".sky/catalogs/v8/runpod/vms.csv").unlink()
        self.patch.setattr(common.requests, "get", offline)

    def yaml(self, resources: str = "accelerators: A40", text: str = YAML) -> Path:
        """A rental YAML with these lines under `resources`."""
        path = self.folder / "rental.yaml"
        indented = "\n".join(f"  {line}" for line in resources.splitlines())
        path.write_text(text.format(resources=indented))
        return path


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one process of this machine tells the others what it does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def sky_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SkyHome:
    """Nothing set up but a price list; RunPod's API is nowhere."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    from sky import skypilot_config

    skypilot_config.safe_reload_config()  # what another test's home has set
    found = SkyHome(home, monkeypatch)
    found.sell(PRICES)
    return found


@pytest.fixture
def runpod_api(sky_home: SkyHome, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunPodApi]:
    """A RunPod account without pods, whose key is set up here."""
    import runpod

    api = RunPodApi()
    (sky_home.folder / ".runpod").mkdir()
    (sky_home.folder / ".runpod/config.toml").write_text(CONFIG)
    monkeypatch.setattr(runpod, "api_key", API_KEY)
    with serve_runpod(api) as url:
        monkeypatch.setenv("RUNPOD_API_BASE_URL", url)
        yield api


@pytest.fixture
def run(tmp_path: Path, time: FakeClock) -> RunState:
    """A released run that has work left, last claimed under epoch 2."""
    return light_run(FileStore(tmp_path / "runs"), clock=time.clock())


@pytest.fixture
def provider() -> FakeProvider:
    """A rental that runs, of whose machines a test decides."""
    return watched_rental()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watcher(run: RunState, provider: FakeProvider, said: list[str]) -> Watcher:
    return Watcher(run, JOB.name, JOB.id, said.append, provider)

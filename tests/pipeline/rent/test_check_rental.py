"""`pion check --on`: what would go wrong on the machines that a SkyPilot YAML asks for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.rent.check.check import CheckRow, run_checks, show_check
from pipeline.rent.check.rental import LOOPBACK_VARIABLE
from pipeline.rent.rental import read_rental
from tests.pipeline.rent.checked_job import Case, unknown, wrong
from tests.pipeline.rent.conftest import YAML, SkyHome
from tests.rental.catalog import Price
from tests.s3_server import SECRET_KEY, S3Server

WORKDIR = "workdir: {folder}\n" + YAML

Checks = Callable[..., dict[str, CheckRow]]


@pytest.fixture
def on_runpod(
    case: Case,
    sky_home: SkyHome,
    runpod_account: Callable[[int], None],
    s3: S3Server,
    s3_store: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Checks:
    """What is found of the tiny job on a rental: everything is fine but for what a test changes."""
    monkeypatch.setenv(LOOPBACK_VARIABLE, "1")

    def find(
        resources: str = "accelerators: A40",
        *,
        text: str = WORKDIR,
        force: bool = False,
        **changes: Any,
    ) -> dict[str, CheckRow]:
        text = text.replace("{folder}", str(case.folder))
        rental = read_rental(sky_home.yaml(resources, text))
        job = case.job(**{"store": s3_store, **changes})
        return {row.name: row for row in run_checks(job, rental, force=force)}

    return find


def test_a_good_rental_passes_every_check(on_runpod: Checks) -> None:
    rows = on_runpod()
    assert {name: row.ok for name, row in rows.items()} == dict.fromkeys(rows, True)
    machine = rows["1 × A40 on demand on RunPod"]
    assert "4×1 sequences" in machine.words
    assert "$0.40/h" in machine.words


def test_a_folder_as_the_store_goes_with_the_machine(on_runpod: Checks, case: Case) -> None:
    rows = on_runpod(store=str(case.folder / "runs"))
    wrong(rows["store from there"], "destroyed with it", "store=s3://")


def test_a_store_at_an_address_of_this_machine(
    on_runpod: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LOOPBACK_VARIABLE)
    wrong(on_runpod()["store from there"], "http://127.0.0.1", "a rented one can't reach")


def test_an_endpoint_that_is_known_on_this_machine_only(
    on_runpod: Checks, monkeypatch: pytest.MonkeyPatch, s3: S3Server
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.url)
    wrong(on_runpod()["store from there"], f"export AWS_ENDPOINT_URL={s3.url}")


def test_credentials_that_are_not_set(on_runpod: Checks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    wrong(on_runpod()["credentials"], "export AWS_SECRET_ACCESS_KEY=")


def test_credentials_that_the_yaml_does_not_pass_on(on_runpod: Checks) -> None:
    text = WORKDIR.replace('AWS_ACCESS_KEY_ID: "", ', "")
    wrong(on_runpod(text=text)["credentials"], "does not pass AWS_ACCESS_KEY_ID on")


def test_a_secret_that_the_yaml_requires(on_runpod: Checks) -> None:
    text = WORKDIR.replace('HF_TOKEN: ""', "HF_TOKEN: null")
    wrong(on_runpod(text=text)["credentials"], "requires HF_TOKEN", "export HF_TOKEN=")


def test_no_value_of_a_credential_is_shown(
    on_runpod: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_never_to_be_seen")
    for rows in (on_runpod(), on_runpod(text=WORKDIR.replace('HF_TOKEN: "", ', ""))):
        text = repr(rows)
        assert "hf_never_to_be_seen" not in text
        assert SECRET_KEY not in text


def test_a_cloud_without_credentials(on_runpod: Checks, sky_home: SkyHome) -> None:
    (sky_home.folder / ".runpod/config.toml").unlink()
    wrong(on_runpod()["RunPod"], "config.toml does not exist", "Run: runpod config")


def test_a_key_that_the_cloud_refuses(
    on_runpod: Checks, runpod_account: Callable[[int], None]
) -> None:
    runpod_account(401)
    wrong(on_runpod()["RunPod"], "nauthorized", "Run: runpod config")


def test_a_cloud_out_of_reach_is_not_found_out(
    on_runpod: Checks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNPOD_API_BASE_URL", "http://127.0.0.1:9")
    unknown(on_runpod()["RunPod"], "can't be reached")


def test_a_gpu_that_nobody_knows(on_runpod: Checks) -> None:
    rows = on_runpod("any_of: [{accelerators: A40}, {accelerators: RTX4000A}]")
    wrong(rows["1 × RTX4000A on demand on RunPod"], "did you mean", "RTXA4000")
    assert rows["1 × A40 on demand on RunPod"].ok


def test_a_gpu_the_cloud_lacks_matters_only_if_it_has_no_other(on_runpod: Checks) -> None:
    rows = on_runpod("any_of: [{accelerators: A40}, {accelerators: L4}]")
    unknown(rows["1 × L4 on demand on RunPod"], "RunPod has no L4")
    wrong(on_runpod("accelerators: L4")["1 × L4 on demand on RunPod"], "RunPod has no L4")


def test_a_model_too_big_for_every_machine_says_what_would_do(on_runpod: Checks) -> None:
    big = {"d_model": 8192, "n_layers": 40, "n_heads": 64, "n_kv_heads": 8, "d_ff": 22016}
    name = "1 × RTXA4000 on demand on RunPod"
    rows = on_runpod("accelerators: RTXA4000", model=big)
    wrong(rows[name], "does not fit", "It fits on no GPU known here")
    rows = on_runpod("accelerators: RTXA4000", model=big | {"n_layers": 2})
    wrong(rows[name], "does not fit", "It fits on")
    assert "A100" in rows[name].words
    assert "RTXA4000" not in rows[name].words


def test_more_workers_than_gpus(on_runpod: Checks) -> None:
    row = on_runpod(hardware={"workers": 2})["1 × A40 on demand on RunPod"]
    wrong(row, "hardware.workers 2", "1 GPUs")


def test_spot_dearer_than_on_demand_unless_forced(on_runpod: Checks, sky_home: SkyHome) -> None:
    sky_home.sell({"A40": Price(0.5, 0.4)})
    spot, name = "accelerators: A40\nuse_spot: true", "1 × A40 spot on RunPod"
    wrong(on_runpod(spot)[name], "spot is $0.50/h", "$0.40/h", "use_spot: false", "--force")
    assert on_runpod(spot, force=True)[name].ok


def test_a_disk_too_small(on_runpod: Checks) -> None:
    text = WORKDIR.replace("disk_size: 60", "disk_size: 12")
    wrong(on_runpod(text=text)["disk"], "15 GB needed", "12 GB asked", "Set disk_size: 18")


def test_data_outside_what_is_copied_to_the_machine(on_runpod: Checks, case: Case) -> None:
    (case.folder / "elsewhere").mkdir()
    text = WORKDIR.replace("{folder}", str(case.folder / "elsewhere"))
    wrong(on_runpod(text=text)["files"], "data.sources.0.path", "outside")


def test_data_that_is_left_out_of_the_copy(on_runpod: Checks, case: Case) -> None:
    (case.folder / ".skyignore").write_text("talks.jsonl\n")
    wrong(on_runpod()["files"], "sft.sources.0.path", "talks.jsonl", ".skyignore")
    (case.folder / ".skyignore").write_text("text/all.txt\n")
    wrong(on_runpod()["files"], "data.sources.0.path", "text/all.txt")
    (case.folder / ".skyignore").write_text("*.png\n")
    assert on_runpod()["files"].ok


def test_a_published_folder_would_go_with_the_machine(on_runpod: Checks, case: Case) -> None:
    row = on_runpod(publish={"to": str(case.folder / "model")})["publish from there"]
    unknown(row, "goes with the machine", "hf://")


def test_a_rental_that_is_not_recovered(on_runpod: Checks) -> None:
    text = WORKDIR.replace("[75]", "[33]")
    unknown(on_runpod(text=text)["recovery"], "recover_on_exit_codes lacks 75")


def test_a_budget_below_the_estimate(on_runpod: Checks) -> None:
    unknown(on_runpod(budget={"dollars": 0.001})["budget"], "above budget.dollars 0.001")
    assert on_runpod(budget={"dollars": 5})["budget"].ok


def test_without_a_catalog_the_price_is_not_found_out(on_runpod: Checks, sky_home: SkyHome) -> None:
    sky_home.lose_catalog()
    name = "1 × A40 on demand on RunPod"
    unknown(on_runpod()[name], "catalog can't be read", "prices.A40")
    assert on_runpod(prices={"A40": 0.3})[name].ok


@pytest.mark.parametrize("there", [True, False], ids=["without JOB", "not there"])
def test_a_useless_yaml_is_one_row_beside_those_of_the_job(
    there: bool, case: Case, sky_home: SkyHome, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sky_home.yaml(text="resources: {{accelerators: A40}}\nrun: x\n")
    on = str(path if there else path.with_name("missing.yaml"))
    assert show_check(str(case.path()), [], on=on, force=False, as_json=True) == 2
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["rental"]["ok"] is False
    assert ("has no JOB" if there else "no SkyPilot YAML at") in rows["rental"]["words"]
    assert rows["store"]["ok"]


def test_the_table_marks_what_is_wrong(
    case: Case, sky_home: SkyHome, capsys: pytest.CaptureFixture[str]
) -> None:
    on = str(sky_home.yaml(text=WORKDIR.replace("{folder}", str(case.folder))))
    assert show_check(str(case.path()), [], on=on, force=False, as_json=False) == 2
    lines = capsys.readouterr().out.splitlines()
    marks = {line[3:].split("  ")[0]: line[0] for line in lines if line[:1] in "✓✗?"}
    assert marks["store"] == "✓"
    assert marks["store from there"] == "✗"
    assert marks["RunPod"] == "✗"

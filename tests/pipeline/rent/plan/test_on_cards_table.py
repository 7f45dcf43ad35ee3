"""What `pion plan` prints and says in JSON of a step on several cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.rent.plan.command import show_plan
from tests.paths import JOBS, REPOSITORY
from tests.pipeline.rent.conftest import SkyHome
from tests.pipeline.rent.plan.test_on_cards import FEW
from tests.support.sky_catalog import PRICES

SMALL = str(JOBS / "pion-small.yaml")


@pytest.fixture
def shown(
    sky_home: SkyHome,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """What `pion plan` prints for pion-small, in a terminal of so many columns."""

    def run(
        *overrides: str, gpus: tuple[str, ...] = (), columns: int = 120, job: str = SMALL
    ) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        settings = [f"store={tmp_path / 'runs'}", *overrides]
        assert show_plan(job, settings, gpus=gpus, as_json=False) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def planned(sky_home: SkyHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What `pion plan --json` says of pion-small."""

    def run(*overrides: str, gpus: tuple[str, ...] = ()) -> dict[str, Any]:
        settings = [f"store={tmp_path / 'runs'}", *overrides]
        assert show_plan(SMALL, settings, gpus=gpus, as_json=True) == 0
        return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]

    return run


def lines_of(printed: str, title: str) -> list[list[str]]:
    """The words of the lines of a table, after its title and its header."""
    lines = printed.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(title))
    words = [line.split() for line in lines[first + 1 :]]
    header = next(number for number, line in enumerate(words) if line[:1] == ["cards"])
    return words[header + 1 :]


def test_a_type_of_gpu_has_a_line_for_each_number_of_cards(shown: Any) -> None:
    printed = shown(gpus=("A40",))
    rows = lines_of(printed, "a step of pretrain on several A40, estimated")[:4]
    assert [row[0] for row in rows] == ["1", "2", "4", "8"]
    assert rows[0] == ["1", "4.340", "30,202", "×1.00", "4.340", "0.000", "0.000", "0.77", "GiB"]
    assert rows[3][3] == "×1.06"
    assert rows[3][-2:] == ["0.10", "GiB"], "an eighth of the moments"
    assert printed.count("estimated from the links' published speeds") == 1
    assert "18 GB/s: measured by a user, 4 × RTX 4090: NVIDIA/nccl issue 1603" in printed


def test_the_table_in_the_document_is_what_the_program_prints(shown: Any) -> None:
    job = str(JOBS / "pion-xl.yaml")
    printed = shown("pretrain.optimizer=muon", gpus=("A40",), job=job)
    written = (REPOSITORY / "docs" / "renting.md").read_text()
    title = "a step of pretrain on several A40, estimated"
    assert lines_of(printed, title)[:4] == lines_of(written, title)[:4]


def test_muon_has_a_column_if_the_job_trains_with_muon(shown: Any) -> None:
    assert "Muon" not in shown(gpus=("A40",))
    rows = lines_of(shown("pretrain.optimizer=muon", gpus=("A40",)), "a step of pretrain")
    alone, eight = float(rows[0][6]), float(rows[3][6])
    assert alone == pytest.approx(8 * eight, rel=0.05)


def test_many_types_have_a_line_each(shown: Any) -> None:
    printed = shown(columns=80)
    rows = lines_of(printed, "seconds of a step of pretrain (× $/token), estimated")[: len(PRICES)]
    assert {row[0] for row in rows} == PRICES.keys()
    a4000 = next(row for row in rows if row[0] == "RTXA4000")
    assert a4000[1:4] == ["18", "8.470", "4.254"]
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_the_number_that_the_job_asks_for_is_marked(shown: Any) -> None:
    rows = lines_of(shown("hardware.workers=4", gpus=("A40",)), "a step of pretrain on several A40")
    assert rows[2][:2] == ["4", "(asked)"]


def test_a_number_that_the_job_cannot_use_says_no_and_why(shown: Any) -> None:
    printed = shown("pretrain.global_batch=6", "sft=null", gpus=("A40",))
    rows = lines_of(printed, "a step of pretrain on several A40")
    assert rows[3] == ["8", "no"]
    assert "pretrain.global_batch 6 is less than one row for each of the 8 workers" in printed


def test_the_json_has_all_numbers_of_each_type(planned: Any) -> None:
    found = planned("hardware.workers=2", gpus=("A40", "RTXA4000"))
    assert found["several_cards"].keys() == {"A40", "RTXA4000"}
    card = found["several_cards"]["A40"]
    assert (card["stage"], card["gradient_bytes"]) == ("pretrain", 4 * 102_967_168)
    one, two, *_ = card["rows"]
    assert (one["cards"], one["relative_cost_of_a_token"], one["asked"]) == (1, 1.0, False)
    assert (two["cards"], two["asked"], two["link"]["gb_per_second"]) == (2, True, 18.0)
    parts = two["parts"]
    seconds = sum(parts[name] for name in ("computing", "summing", "muon", "gathering"))
    assert two["step_seconds"] == pytest.approx(seconds)
    assert two["tokens_per_second"] == pytest.approx(131_072 / seconds)
    assert two["moment_bytes"] == pytest.approx(one["moment_bytes"] / 2, rel=0.01)
    (estimate,) = [row for row in found["estimates"] if row["gpu"] == "A40"]
    pretrain = next(stage for stage in estimate["stages"] if stage["stage"] == "pretrain")
    assert pretrain["tokens_per_second"] == pytest.approx(two["tokens_per_second"])


def test_a_warning_is_one_line_of_the_notes(planned: Any, shown: Any) -> None:
    (warning,) = [n for n in planned(*FEW, gpus=("RTXA4000",))["notes"] if "warning: " in n]
    assert warning.startswith("warning: slower than one card: 2 × RTXA4000, ")
    assert "· warning: slower than one card" in shown(*FEW, gpus=("RTXA4000",))
    at_its_own_batch = planned(gpus=("RTXA4000", "H100-SXM"))["notes"]
    assert not any(note.startswith("warning: ") for note in at_its_own_batch)


def test_a_card_without_a_known_link_says_so(planned: Any, shown: Any) -> None:
    printed = shown(gpus=("A10G",))
    assert "the link of a A10G is unknown: assumed to be the slowest known" in printed
    row = planned(gpus=("A10G",))["several_cards"]["A10G"]["rows"][1]
    assert row["link"]["gb_per_second"] == 9.0

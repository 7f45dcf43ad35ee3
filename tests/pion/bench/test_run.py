"""Which rows run, what the file has after each row, and the exit code."""

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch

from pion.bench import run
from pion.bench.__main__ import main
from pion.bench.card import OLDEST_TORCH, describe, file_name
from pion.bench.catalog import Task, chosen_tasks, every_task
from pion.bench.models import Bench
from pion.bench.options import MINUTES, Options
from pion.bench.results import Outcome, read_results, write_results
from pion.errors import BadInput
from tests.paths import REPOSITORY

RIGHT, WRONG = Outcome("right", "fine"), Outcome("wrong", "off by 3")
SPEED = Outcome("measured", "fast", {"tokens_per_second": 5.0})
TINY = Bench(torch.device("cpu"), tiny=True)


class Bench3:
    """The bench with other tasks; `said` is what it printed, `ran` the rows that ran."""

    def __init__(self, monkeypatch, folder):
        self.said = []
        self.ran = []
        self.folder = folder
        self._monkeypatch = monkeypatch

    def __call__(self, tasks, **options):
        """Run tasks by name, each an outcome or a function; "fast" tasks measure."""
        made = [
            Task(name, self._running(name, do), "fast" not in name) for name, do in tasks.items()
        ]
        self._monkeypatch.setattr(run, "chosen_tasks", lambda place, only: made)
        chosen = Options(**{"tiny": True, **options})
        return run.bench(chosen, self.folder, self.said.append)

    def _running(self, name, do) -> Callable[[], Outcome]:
        def runs():
            self.ran.append(name)
            return do() if callable(do) else do

        return runs

    @property
    def text(self):
        return "\n".join(self.said)

    @property
    def path(self):
        return self.folder / file_name(describe(TINY.device).card)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench3(monkeypatch, tmp_path)


# ---------------------------------------------------------------- verdicts


def test_all_right_is_exit_code_0(bench):
    assert bench({"a": RIGHT, "fast": SPEED}) == 0
    assert "1 right, 1 measured" in bench.text


def test_anything_wrong_is_exit_code_1_and_the_other_rows_still_run(bench):
    assert bench({"a": RIGHT, "b": WRONG, "fast": SPEED}) == 1
    assert bench.ran == ["a", "b", "fast"]
    assert "wrong: off by 3" in bench.text


def test_a_row_that_raises_is_wrong_and_its_words_have_no_path(bench):
    def fails():
        raise RuntimeError("no kernel image in /home/someone/kernels/a.so: 7\nand more")

    assert bench({"a": fails, "b": RIGHT}) == 1
    first, second = read_results(bench.path).rows
    assert first.words == "RuntimeError: no kernel image in …: 7"
    assert second.verdict == "right"


def test_a_card_that_answers_no_more_ends_the_bench_and_keeps_the_rows(bench, monkeypatch):
    monkeypatch.setattr(run, "_unusable", lambda place: "illegal memory access")
    with pytest.raises(run.PionError, match=r"answers nothing more.*--resume") as error:
        bench({"a": RIGHT, "b": RIGHT})
    assert error.value.exit_code == 1
    assert [row.name for row in read_results(bench.path).rows] == ["a"]


# ---------------------------------------------------------------- the file


def test_the_file_has_every_finished_row_before_the_next_row_begins(bench):
    seen = []

    def look():
        seen.append([row["name"] for row in json.loads(bench.path.read_text())["rows"]])
        return RIGHT

    bench({"a": look, "b": look, "c": look})
    assert seen == [[], ["a"], ["a", "b"]]


def test_a_file_that_cannot_be_written_fails_before_anything_is_measured(bench, tmp_path):
    with pytest.raises(BadInput, match="no-folder"):
        bench({"a": RIGHT}, out=tmp_path / "no-folder" / "x.json")
    assert bench.ran == []


def test_interrupting_says_how_to_continue(bench):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench({"a": RIGHT, "b": interrupt})
    assert f"--resume {bench.path}" in bench.said[-1]
    assert [row.name for row in read_results(bench.path).rows] == ["a"]


# ---------------------------------------------------------------- resuming


def test_resuming_keeps_rows_and_repeats_what_was_wrong(bench):
    assert bench({"a": RIGHT, "b": WRONG}) == 1
    bench.ran.clear()
    assert bench({"a": WRONG, "b": RIGHT, "c": RIGHT}, resume=bench.path) == 0
    assert bench.ran == ["b", "c"]
    found = {row.name: row.verdict for row in read_results(bench.path).rows}
    assert found == dict.fromkeys("abc", "right")


@pytest.mark.parametrize("changed", [{"torch": "2.13.0"}, {"code": "0" * 12}, {"pion": "0.0.9"}])
def test_rows_of_other_software_are_measured_again(bench, changed):
    bench({"a": RIGHT})
    found = read_results(bench.path)
    write_results(
        bench.path, dataclasses.replace(found, card=dataclasses.replace(found.card, **changed))
    )
    bench.ran.clear()
    bench({"a": RIGHT}, resume=bench.path)
    assert bench.ran == ["a"]
    assert f"another {next(iter(changed))}" in bench.text


def test_the_result_of_another_card_is_not_overwritten(bench, tmp_path):
    bench({"a": RIGHT})
    found = read_results(bench.path)
    other = dataclasses.replace(found, card=dataclasses.replace(found.card, card="NVIDIA A40"))
    write_results(bench.path, other)
    with pytest.raises(BadInput, match=r"result of NVIDIA A40.*not changed.*--out"):
        bench({"a": RIGHT}, resume=bench.path)
    assert read_results(bench.path) == other
    bench.ran.clear()
    bench({"a": RIGHT}, resume=bench.path, out=tmp_path / "mine.json")
    assert bench.ran == ["a"]


def test_rows_of_full_models_are_not_mixed_with_tiny_ones(bench):
    bench({"a": RIGHT})
    write_results(bench.path, dataclasses.replace(read_results(bench.path), tiny=False))
    bench.ran.clear()
    bench({"a": RIGHT}, resume=bench.path)
    assert bench.ran == ["a"]


# ---------------------------------------------------------------- which rows


def names(*only):
    return [task.name for task in chosen_tasks(TINY, only)]


def test_only_takes_rows_by_name_or_by_what_their_names_begin_with():
    assert names("save/tiny-pion") == ["save/tiny-pion"]
    both = ["losses/pion/bfloat16", "save/tiny-pion", "losses/pion/float32"]
    assert names("losses/pion", "save") == both
    assert names() == [task.name for task in every_task(TINY)]


def test_a_name_that_no_row_has_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match=r"save/tiny-poin.*did you mean 'save/tiny-pion'.*--names"):
        names("save/tiny-poin")


def test_the_default_set_begins_no_row_after_its_minutes_and_names_what_is_left(bench):
    assert bench({"a": RIGHT, "fast": SPEED}, minutes=0) == 0
    assert bench.ran == []
    assert "2 rows were not reached in 0 minutes: a, fast. To add them, run the" in bench.text
    assert f"--resume {bench.path}" in bench.text
    bench({"fast": SPEED}, minutes=0, only=("fast",), resume=bench.path)
    assert bench.ran == ["fast"], "a row that was asked for runs"


def test_a_row_that_would_end_too_late_gives_way_to_the_rows_after_it(bench, monkeypatch):
    monkeypatch.setattr(run, "usual_seconds", lambda paths: {"slow": 500.0, "a": 1.0, "fast": 1.0})
    card = {"tiny": False, "device": "cpu"}
    assert bench({"a": RIGHT, "slow": RIGHT, "fast": SPEED}, **card) == 0
    assert bench.ran == ["a", "fast"]
    assert "1 rows were not reached in 7 minutes: slow." in bench.text
    assert "took 0 s for checks, 0 s for measurements" in bench.text
    monkeypatch.setattr(run, "usual_seconds", lambda paths: {})
    bench({"unknown": RIGHT}, minutes=0.2, **card)
    assert "unknown" not in bench.ran, "a row takes 15 s if nobody knows"


H200 = REPOSITORY / "benchmarks/results/bench/nvidia-h200.json"


def test_the_rows_that_are_worth_the_most_fit_into_the_minutes_of_an_h200():
    seconds = run.usual_seconds([H200])
    tasks = every_task(Bench(torch.device("cuda", 0), tiny=False))
    ends, end = {}, 0.0
    for task in tasks:
        end += seconds.get(task.name, run.UNKNOWN)
        ends[task.name] = end
    first = [name for name, seconds in ends.items() if seconds < 200]
    for family in ("pion", "tachyon", "daisy", "pilon", "lepton"):
        assert f"losses/{family}/bfloat16" in first
        assert ends[f"losses/{family}/float32"] < 60 * MINUTES
    for row in ("train/pion-small/job", "generate/pion-small/16", "save/pion-small"):
        assert row in first
    for preset in ("pion-small", "pion-xl", "tachyon-large", "daisy-420m", "lepton-small"):
        assert {f"train/{preset}/{how}" for how in ("eager", "compiled", "job")} <= ends.keys()


def test_a_row_takes_as_long_as_on_the_slowest_card_that_was_measured(tmp_path):
    found = read_results(H200)
    (row,) = (row for row in found.rows if row.name == "save/pion-small")
    slow = dataclasses.replace(found, rows=(dataclasses.replace(row, seconds=9.0),))
    write_results(tmp_path / "slow.json", slow)
    assert run.usual_seconds([H200])["save/pion-small"] < 9.0
    assert run.usual_seconds([tmp_path / "slow.json", H200])["save/pion-small"] == 9.0


# ---------------------------------------------------------------- requests


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_machine_without_a_card_is_told_of_tiny(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "--tiny" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--device", "tpu0"], "--device tpu0"),
        (["--only", "nothing"], "--only nothing"),
        (["--resume", "absent.json"], "absent.json can't be read"),
    ],
)
def test_an_invalid_request_is_exit_code_2(capsys, arguments, expected):
    assert main(["--tiny", *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_names_are_listed_without_a_card(capsys):
    assert main(["--names", "--only", "train/pion-small"]) == 0
    listed = [f"train/pion-small/{how}" for how in ("job", "compiled", "eager")]
    assert capsys.readouterr().out.split() == listed


def test_an_old_torch_is_refused_with_the_command_that_helps(bench, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.0+cu128")
    with pytest.raises(BadInput, match=r'pip install "torch>='):
        bench({"a": RIGHT})


def test_the_oldest_torch_is_that_of_the_project():
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={".".join(map(str, OLDEST_TORCH))}"' in text

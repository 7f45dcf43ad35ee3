"""How far a task of lm-eval is."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.stages.lm_eval import run_task
from pipeline.stages.lm_eval_progress import Progress, progress_of
from tests.support.scripts import python_that

BAR = "Running generate_until requests:   9%|▉         | {done}/1319 [00:01<00:08,  1.19s/it]\r"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("Loading weights: 100%|██████████| 272/272 [00:00<00:00, 34.5it/s]", ""),
        (BAR.format(done=120), "120 of 1,319 requests"),
        (BAR.format(done=120) + "\n[transformers] a warning\n", "120 of 1,319 requests"),
        (BAR.format(done=120) + "x" * 5000, ""),
        ("x" * 5000 + BAR.format(done=120) + BAR.format(done=1300), "1,300 of 1,319 requests"),
    ],
)
def test_the_last_bar_counts(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "stderr").write_text(text)
    assert progress_of(tmp_path / "stderr") == said


def test_the_same_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stages.lm_eval_progress.LOOKS", 2)
    said: list[str] = []
    progress = Progress(tmp_path / "stderr", said.append)
    for done in (1, 2, 2, 3):
        (tmp_path / "stderr").write_text(BAR.format(done=done))
        progress.look()
        progress.look()
    assert said == [f"{done} of 1,319 requests" for done in (1, 2, 3)]


def test_a_task_that_takes_long_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("pipeline.stages.lm_eval_progress.LOOKS", 1)
    heard = tmp_path / "heard"
    does = f"""
import time
print({BAR.format(done=120)!r}, end="", file=sys.stderr, flush=True)
while not os.path.exists({str(heard)!r}):
    time.sleep(0.01)
sys.exit(1)
"""
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(does, tmp_path))
    said: list[str] = []

    def say(progress: str) -> None:
        said.append(progress)
        heard.touch()

    run_task("gsm8k", tmp_path, say=say)
    assert said == ["120 of 1,319 requests"]

"""`pion export`: a folder for transformers."""

from __future__ import annotations

from pathlib import Path

from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run


def test_export_writes_a_folder_that_pion_and_transformers_load(here: Path, pion: Pion) -> None:
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "out", "--stage", "pretrain")
    assert code == 0
    assert "demo (pretrain, step 20); loaded again with transformers" in out
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0

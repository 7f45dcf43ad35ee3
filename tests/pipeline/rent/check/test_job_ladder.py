"""`pion check` shows what the job's ladder predicts, and refuses one that can't predict."""

from __future__ import annotations

from pipeline.ladder.fit import fit
from pipeline.state.stores import FileStore
from tests.pipeline.ladder.made_up import LAWS, keep_ladder, ladder
from tests.pipeline.rent.check.checked_job import Case, unknown, wrong

SIZES, LENGTHS = (10_000, 20_000, 40_000), (1000, 2000, 4000)


def test_a_ladder_that_can_not_predict_is_refused_and_one_that_can_is_shown(case: Case) -> None:
    wrong(case.row("evaluate.ladder", evaluate__ladder="small"), "there is no ladder 'small'")
    store = FileStore(case.folder / "runs")
    keep_ladder(store, None, {})
    wrong(case.row("evaluate.ladder", evaluate__ladder="small"), "is not finished", "Nothing was")
    assert case.row("run", evaluate__ladder="small").ok
    fitted = fit(ladder(LAWS[0], sizes=SIZES, lengths=LENGTHS))
    keep_ladder(store, fitted, {})
    row = case.row("evaluate.ladder", evaluate__ladder="small")
    assert row.ok
    assert row.words.startswith("predicted ")
    assert "by ladder small" in row.words
    far = case.row("evaluate.ladder", evaluate__ladder="small", pretrain__steps=10**6)
    unknown(far, "predicted nothing by ladder small", "trusted up to 100 times")

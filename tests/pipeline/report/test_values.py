"""A result is shown with its standard error or an interval."""

from __future__ import annotations

from pipeline.report.values import share_with_interval


def test_a_share_of_all_cases_has_an_interval_and_an_old_result_has_no_error() -> None:
    of_all = {"stop_accuracy": 1.0, "stop_accuracy_sem": 0.0}
    counted = share_with_interval({**of_all, "ends": 40}, "stop_accuracy", "ends")
    assert counted == "100.0 % (95 %: 91.2 to 100.0)"
    assert share_with_interval(of_all, "stop_accuracy", "ends") == "100.0 %"

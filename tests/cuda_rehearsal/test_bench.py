"""Every row of `pion.bench` and every check of tests/gpu runs to its end on a pretended card."""

import pytest

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def reports(on_pretended_card):
    return on_pretended_card("tests.cuda_rehearsal.bench")


def test_no_row_raises(reports):
    assert {name: report.error for name, report in reports.items() if report.error} == {}
    assert len(reports) > 12


def test_no_operation_mixes_host_and_card(reports):
    mixed = {name: report.of_kind("wrong_device") for name, report in reports.items()}
    assert {name: found for name, found in mixed.items() if found} == {}

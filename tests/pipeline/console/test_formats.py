"""Numbers as text."""

import math

import pytest

from pipeline.console.formats import (
    amount,
    duration,
    measured,
    minutes_or_hours,
    money,
    printable,
    size,
)


@pytest.mark.parametrize("error", [None, math.nan, math.inf, 0.0])
def test_an_error_that_says_nothing_is_not_shown(error):
    assert measured(1.0, error) == "1.000"


def test_an_error_keeps_its_first_digit():
    assert measured(0.00042, 0.00011) == "0.0004 ± 0.0001"


def test_durations_and_sizes_read_like_speech():
    shown = [duration(s) for s in (-1, 0.42, 12, 59.6, 200, 18_120, 273_600)]
    assert shown == ["0.0 s", "0.4 s", "12 s", "1 min 00 s", "3 min 20 s", "5 h 02 min", "3 d 4 h"]
    assert [size(b) for b in (812, 3.1e6, 1.24e9)] == ["812 B", "3.1 MB", "1.24 GB"]
    assert [amount(n) for n in (999_700, 999.7e6, 1.5e13)] == (
        ["999,700", "1,000 million", "15,000 billion"]
    )
    # What is less than the least that would be shown says so.
    assert [duration(s) for s in (0, 1e-9, 0.004, 0.049, 0.05)] == (
        ["0.0 s", "1 ms", "4 ms", "49 ms", "0.1 s"]
    )
    assert [money(d) for d in (0, 1e-9, 0.0099, 0.01, 1234.5)] == (
        ["$0.00", "<$0.01", "<$0.01", "$0.01", "$1,234.50"]
    )
    assert [minutes_or_hours(h) for h in (0, 0.001, 0.5, 1.25)] == (
        ["0 min", "<1 min", "30 min", "1.2 h"]
    )
    assert printable("tab\tand\nnewline stay") == "tab\tand\nnewline stay"

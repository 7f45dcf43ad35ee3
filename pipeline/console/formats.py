"""Format durations, sizes, times and text from outside for people."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime

# Everything that moves the cursor, rings or recolors, except newline and tab.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# Numbers with more decimals are written as 1e-09, and larger ones as 1e+12.
MOST_DECIMALS = 6
LARGEST = 1e12


def printable(text: str) -> str:
    """Return `text` with control characters replaced, so a model can't control the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def show(text: str) -> None:
    """Print text that may come from a store, a model or a job, without control characters."""
    # In one piece. Otherwise the end of the line may come after a line of another thread.
    print(printable(text) + "\n", end="", flush=True)


def duration(seconds: float) -> str:
    """Return `4 ms`, `0.4 s`, `12 s`, `3 min 20 s`, `5 h 02 min` or `3 d 4 h`."""
    if 0 < seconds < 0.05:
        return f"{max(1000 * seconds, 1):.0f} ms"
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def number_or_dash(value: float | None, digits: int = 3) -> str:
    """Return `1.234`, or `–` for a number that is not known."""
    return "–" if value is None else f"{value:.{digits}f}"


def hours(seconds: float) -> str:
    """Return `31.5 h`, or `never` for infinitely many seconds."""
    return f"{seconds / 3600:,.1f} h" if math.isfinite(seconds) else "never"


def minutes_or_hours(hours: float) -> str:
    """Return `<1 min`, `31 min` or `31.5 h`."""
    if 0 < 60 * hours < 0.5:
        return "<1 min"
    return f"{60 * hours:.0f} min" if hours < 1 else f"{hours:,.1f} h"


def money(dollars: float, sign: str = "$") -> str:
    """Return `$1,234.56`, or `<$0.01` for less than a cent."""
    return f"<{sign}0.01" if 0 < dollars < 0.01 else f"{sign}{dollars:,.2f}"


def counted(count: int, noun: str) -> str:
    """Return `1 row`, or `1,234 rows`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def some(names: Sequence[str], most: int) -> str:
    """Return `a, b and 3 more`: so many names at most."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"


def beginning(text: str, most: int) -> str:
    """Return a text, or its beginning and `…` if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"


def passes_in_words(count: float) -> str:
    """Return `1 pass`, or `2.5 passes`: how often data is trained on."""
    return f"{float(f'{count:.3g}'):,g} pass" + ("" if count == 1 else "es")


def size(count: float) -> str:
    """Return bytes as `812 B`, `3.1 MB`, `1.24 GB`."""
    units = ((" TB", 1e12), (" GB", 1e9), (" MB", 1e6), (" kB", 1e3))
    return _in_units(count, units) or f"{count:.0f} B"


def amount(count: float) -> str:
    """Return a number as `812,345`, `3.1 million`, `1.24 billion`."""
    return _in_units(count, ((" billion", 1e9), (" million", 1e6))) or f"{count:,.0f}"


def short_amount(count: float) -> str:
    """Return a number as `812`, `812K`, `3.1M`, `1.24B`, `1.2T`."""
    units = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3))
    return _in_units(count, units) or f"{count:,.0f}"


def _in_units(count: float, units: Sequence[tuple[str, float]]) -> str:
    """Return a number in the first unit that is not larger; "" if all are."""
    for unit, scale in units:
        if count >= scale:
            return f"{float(f'{count / scale:.3g}'):,g}{unit}"
    return ""


def measured(value: float, error: float | None = None, digits: int = 3) -> str:
    """Return a value with its standard error as `2.081 ± 0.012`; without an error `2.081`.

    Both have `digits` decimals, and more where the error (or a value without an error) would else
    lose its first digit: `0.0004 ± 0.0001`.
    """
    # An error of exactly 0, as lm-eval gives for questions that are all right, says nothing.
    known = error is not None and error != 0 and math.isfinite(error)
    small = abs(error) if known and error else abs(value)
    if small and (known or small < 0.5 * 10**-digits):
        digits = max(digits, -math.floor(math.log10(small)))
    kind = f",.{digits}f" if digits <= MOST_DECIMALS and abs(value) < LARGEST else ".2g"
    return f"{value:{kind}} ± {error:{kind}}" if known else f"{value:{kind}}"


def moment(at: float) -> str:
    """Return Unix time as `2026-11-20 07:33:12 UTC`."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

"""Write the page of a ladder, `ladder.html`: its runs, the law and its curves, without requests."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from pion.files import write_atomically
from pipeline.console.formats import measured, short_amount
from pipeline.console.masking import masked
from pipeline.ladder.look import Ladder, Step
from pipeline.report.report_file import PAGE as RUN_PAGE
from pipeline.state.stores import Store
from pipeline.state.stores.base import LADDERS

PAGE = Path(__file__).with_name("page")
_POLICY = (
    "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
    "style-src 'sha256-{style}'"
)
_COLUMNS = (
    "run",
    "multiplications",
    "tokens",
    "FLOPs",
    "bits per byte",
    "predicted",
    "90 % between",
    "error",
)


def write_page(ladder: Ladder, store: Store) -> str:
    """Write the page next to the ladder's record, and return where it is.

    Of a remote store, a copy is written to the working directory, and its path is returned. Raises
    StoreError.
    """
    key, html = f"{LADDERS}/{ladder.name}/ladder.html", page_html(ladder)
    store.write(key, html)
    store.flush()
    path = store.local_path(key)
    if path is None:
        path = Path(f"{ladder.name}-ladder.html")
        write_atomically(path, html)
    return str(path)


def page_html(ladder: Ladder) -> bytes:
    """Return the page, with everything that it shows inside."""
    style = (RUN_PAGE / "page.css").read_text() + (PAGE / "ladder.css").read_text()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = Template((PAGE / "ladder.html").read_text()).substitute(
        policy=_POLICY.format(style=digest),
        title=escape(f"{ladder.name} ladder"),
        url=escape(masked(ladder.url)),
        style=style,
        chart=chart(ladder),
        law=_law(ladder),
        table=_table(ladder),
    )
    return page.encode(errors="backslashreplace")


def _law(ladder: Ladder) -> str:
    if ladder.fit is None:
        return '<p class="faint">No fit yet: too few runs are finished.</p>'
    law, noise = ladder.fit.law, ladder.fit.noise
    words = (
        f"{law.E:.3f} + {law.A:.4g} · N<sup>−{law.alpha:.3f}</sup> + "
        f"{law.B:.4g} · D<sup>−{law.beta:.3f}</sup>"
    )
    trusted = f"{ladder.fit.trusted_flops:.2g}"
    return (
        f"<p>bits per byte = {words}</p>"
        '<p class="faint small">N: multiplications per token; D: tokens. The runs are '
        f"{measured(noise, digits=4)} bits per byte from the law (standard deviation). It is "
        f"trusted up to {trusted} FLOPs.</p>"
    )


def _table(ladder: Ladder) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in _COLUMNS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells_of(step)) + "</tr>"
        for step in ladder.steps
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def cells_of(step: Step) -> list[str]:
    """Return the cells of a run: name, multiplications, tokens, FLOPs, bits per byte or why there
    are none, prediction, its interval, and the error."""
    rung, result, said, error = step.rung, step.result, step.prediction, step.error
    return [
        f"{rung.name}{' (held out)' if rung.held_out else ''}",
        short_amount(rung.macs_per_token),
        short_amount(rung.tokens),
        f"{rung.flops:.2g}",
        step.failed or "–"
        if result is None
        else measured(result.bits_per_byte, result.bits_per_byte_sem, 4),
        "" if said is None else f"{said.bits_per_byte:.4f}",
        "" if said is None else f"{said.low:.4f} to {said.high:.4f}",
        "" if error is None else f"{100 * error:+.2f} %",
    ]


# ---------------------------------------------------------------- the chart


WIDTH, HEIGHT = 900, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 92, 32, 46
# Between two names of curves, in pixels.
LINE = 14
COLORS = 8
POINTS_OF_CURVE = 60
# Free room at each side of the points, as a share of their range.
MARGIN = 0.06
_TICKS = 5


@dataclass(frozen=True)
class _Axis:
    """An axis with a logarithmic scale, from `low` to `high`, between two positions in pixels."""

    low: float
    high: float
    first: float
    last: float

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return round(self.first + share * (self.last - self.first), 1)

    def values(self, count: int) -> list[float]:
        """Return values at equal distances."""
        return [self.low * (self.high / self.low) ** (i / (count - 1)) for i in range(count)]


def chart(ladder: Ladder) -> str:
    """Return the chart as an SVG element, or a sentence if nothing is measured yet."""
    drawable = [step for step in ladder.steps if step.result is not None]
    if not drawable:
        return '<p class="faint">Nothing is measured yet.</p>'
    sizes = sorted({step.rung.macs_per_token for step in drawable})
    x = _axis([float(s.rung.tokens) for s in drawable], LEFT, WIDTH - RIGHT)
    losses = [s.result.bits_per_byte for s in drawable if s.result is not None]
    tokens = x.values(POINTS_OF_CURVE)
    law = None if ladder.fit is None else ladder.fit.law
    # By the law, the bits per byte of each size after these tokens.
    curves = {size: [law.loss(size, t) for t in tokens] for size in sizes if law is not None}
    y = _axis([*losses, *itertools.chain(*curves.values())], HEIGHT - BOTTOM, TOP)
    parts = [*_grid(x, y), *_names(curves, y)]
    for number, size in enumerate(sizes):
        color = number % COLORS
        if size in curves:
            path = " ".join(f"{x.at(t)},{y.at(b)}" for t, b in zip(tokens, curves[size]))
            parts.append(f'<polyline class="curve s{color}" points="{path}"/>')
        parts += [
            p for s in drawable if s.rung.macs_per_token == size for p in _dot(s, color, x, y)
        ]
    label = f"Bits per byte of {len(drawable)} runs over their tokens, with the fitted law"
    return (
        f'<svg class="ladder-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _axis(values: Sequence[float], first: float, last: float) -> _Axis:
    low, high = min(values), max(values)
    room = (high / low) ** MARGIN if high > low else 1.1
    return _Axis(low / room, high * room, first, last)


def _grid(x: _Axis, y: _Axis) -> Iterator[str]:
    for value in y.values(_TICKS):
        at = y.at(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
        yield f'<text x="{LEFT - 8}" y="{at + 4}" text-anchor="end">{value:.3f}</text>'
    for value in x.values(_TICKS):
        words = short_amount(value)
        yield f'<text x="{x.at(value)}" y="{HEIGHT - 24}" text-anchor="middle">{words}</text>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">tokens</text>'
    yield f'<text x="{LEFT - 52}" y="{TOP - 16}">bits per byte</text>'


def _names(curves: Mapping[int, Sequence[float]], y: _Axis) -> Iterator[str]:
    """Yield the names of the sizes at the ends of their curves, the smallest size at the top."""
    places = [y.at(bits[-1]) + 4 for bits in curves.values()]
    for number in range(1, len(places)):
        places[number] = max(places[number], places[number - 1] + LINE)
    # No name is below the axis, where the numbers of tokens are.
    lowest = float(HEIGHT - BOTTOM)
    for number in reversed(range(len(places))):
        lowest = places[number] = min(places[number], lowest)
        lowest -= LINE
    for number, size in enumerate(curves):
        place = f'x="{WIDTH - RIGHT + 6}" y="{round(places[number], 1)}"'
        yield f'<text class="f{number % COLORS}" {place}>{short_amount(size)}</text>'


def _dot(step: Step, color: int, x: _Axis, y: _Axis) -> Iterator[str]:
    assert step.result is not None
    at, bits = x.at(step.rung.tokens), step.result.bits_per_byte
    sem = step.result.bits_per_byte_sem
    title = f"<title>{escape(step.rung.name)}: {bits:.4f}</title>"
    if sem and sem < bits:
        top, bottom = y.at(bits + sem), y.at(bits - sem)
        yield f'<line class="error s{color}" x1="{at}" x2="{at}" y1="{top}" y2="{bottom}"/>'
    shown = f"held-out s{color}" if step.rung.held_out else f"f{color}"
    yield f'<circle class="{shown}" cx="{at}" cy="{y.at(bits)}" r="4.5">{title}</circle>'

"""Write the page of a ladder, `ladder.html`: its runs, the law and its curves, without requests."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from string import Template

from pion.files import write_atomically
from pipeline.console.formats import measured, short_amount
from pipeline.console.masking import masked
from pipeline.ladder.chart import chart
from pipeline.ladder.look import Ladder, Step
from pipeline.ladder.record import page_key
from pipeline.report.report_file import PAGE as RUN_PAGE
from pipeline.state.stores import Store

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
    key, html = page_key(ladder.name), page_html(ladder)
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
        step.failed or "–" if result is None else measured(result.bits_per_byte, result.sem, 4),
        "" if said is None else f"{said.bits_per_byte:.4f}",
        "" if said is None else f"{said.low:.4f} to {said.high:.4f}",
        "" if error is None else f"{100 * error:+.2f} %",
    ]

"""What `pion run` shows: a live panel on a terminal, plain timestamped lines in a log.

Stages and workers describe what happens in plain dicts, which cross processes as JSON. Every type
and its fields (a `?` marks those that may be absent or None):

    phase       name, seconds, total?, parts?
                                           what a part of the start took; total: the whole start;
                                           parts: what the seconds consist of, by name
    prepare     what, done, total?, unit   work of `prepare` so far: documents, MB, shards …
    stage       stage, state, why, steps?  state: done | resume | todo | stale | started
    step        stage, step, steps, loss, lr, grad_norm?, tokens_per_second, mfu?, memory?, eta?,
                dollars?, dollars_per_hour?
                                           one per log interval; memory in bytes, eta in seconds,
                                           dollars spent on the run so far, this machine's price
    eval        stage, step, loss, loss_sem
    sample      stage, step, prompt, text  what the model writes at an evaluation
    checkpoint  stage, step, stall?, interval?
                                           durable now; seconds training stood still, seconds
                                           between two saves if time decides
    note        text                       anything else worth a line
    summary     rows                       [label, value] pairs at the end: model, card, report …

Four more types come from the workers of Ray and never get here, since advance.py acts on them:
`worker`, `trained` and `error`, which a worker sends when it begins and ends (ray_fit.py), and
`fit_ended`, which workers.py adds when the process that runs Ray Train has ended by itself.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.console.formats import duration, printable, size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

Message = dict[str, Any]
STATES = {
    "done": "done",
    "resume": "to be continued",
    "todo": "to do",
    "stale": "to be redone",
    "started": "starts",
}
PREPARE_SECONDS = 5.0
"""A log gets a line about `prepare` at most so often."""


class Display:
    """Shows messages as they come, from any thread.

    A context manager; `live` is chosen by whether `file` is a terminal. When nobody can be written
    to any more (a closed pipe) it falls silent: that is no reason to stop a run.
    """

    def __init__(
        self,
        file: TextIO | None = None,
        *,
        live: bool | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._file = file or sys.stdout
        self._now = now
        self._lock = threading.RLock()
        self._silent = False
        self._phases: list[tuple[str, float]] = []
        self._progress: Message | None = None
        self._saved: tuple[int, float] | None = None
        self._interval: float | None = None
        self._prepare_shown: dict[str, float] = {}
        self._console: Console | None = None
        self._live: Live | None = None
        if live or (live is None and _is_terminal(self._file)):
            from rich.console import Console

            self._console = Console(file=self._file, force_terminal=True, highlight=False)

    def __enter__(self) -> Display:
        if self._console is not None:
            from rich.live import Live

            self._live = Live(
                console=self._console,
                get_renderable=self._panel,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, message: Message) -> None:
        """Show one message. Raises ValueError for a type the table above does not have."""
        handler = getattr(self, f"_on_{message['type']}", None)
        if handler is None:
            raise ValueError(f"there is no message type {message['type']!r}")
        with self._lock:
            handler(message)

    # ------------------------------------------------------------ one method per message type

    def _on_phase(self, m: Message) -> None:
        if m.get("parts"):
            self._line(f"{m['name']}: {m['seconds']:.1f} s{_parts(m['parts'].items())}")
        elif m.get("total"):
            self._line(f"{m['name']} after {m['seconds']:.1f} s{_parts(self._phases)}")
            self._phases.clear()
        else:
            self._phases.append((m["name"], m["seconds"]))
            if self._console is None:
                self._line(f"{m['name']}: {m['seconds']:.1f} s")

    def _on_prepare(self, m: Message) -> None:
        self._progress = m
        last = self._prepare_shown.get(m["what"])
        finished = m.get("total") is not None and m["done"] >= m["total"]
        due = last is None or finished or self._now() - last >= PREPARE_SECONDS
        if self._console is None and due:
            self._prepare_shown[m["what"]] = self._now()
            self._line(f"prepare: {m['what']} {_amount(m)}")

    def _on_stage(self, m: Message) -> None:
        stage, state, why = m["stage"], m["state"], m.get("why")
        text = f"{stage}: {STATES[state]}" + (f" ({why})" if why else "")
        self._line(text, style="bold" if state == "started" else "")
        self._progress = None
        if state == "started" and m.get("steps"):
            self._saved = None

    def _on_step(self, m: Message) -> None:
        self._progress = m
        if self._console is None:
            self._line(
                f"{m['stage']} step {m['step']:,}/{m['steps']:,}  " + "  ".join(self._facts())
            )

    def _on_eval(self, m: Message) -> None:
        self._line(
            f"{m['stage']} step {m['step']:,}: held-out loss {m['loss']:.4f} ± {m['loss_sem']:.4f}",
            style="green",
        )

    def _on_sample(self, m: Message) -> None:
        self._line(f"{m['stage']} step {m['step']:,}: sample for {m['prompt']!r}")
        for line in printable(m["text"]).strip("\n").split("\n"):
            self._line(f"    | {line}", style="dim", stamp=False)

    def _on_checkpoint(self, m: Message) -> None:
        self._saved = (m["step"], self._now())
        stall, self._interval = m.get("stall"), m.get("interval")
        if self._console is None:
            details = [] if stall is None else [f"training stood still for {stall:.2f} s"]
            if self._interval is not None:
                details.append(f"saving every {duration(self._interval)}")
            detail = f" ({', '.join(details)})" if details else ""
            self._line(f"{m['stage']} step {m['step']:,}: saved{detail}")

    def _on_note(self, m: Message) -> None:
        self._line(printable(m["text"]), style="yellow")

    def _on_summary(self, m: Message) -> None:
        self._progress = None
        width = max((len(label) for label, _ in m["rows"]), default=0)
        for label, value in m["rows"]:
            self._line(f"{label:<{width}}  {printable(str(value))}", stamp=False)

    # ------------------------------------------------------------ writing

    def _line(self, text: str, *, style: str = "", stamp: bool = True) -> None:
        if self._silent:
            return
        try:
            if self._console is not None:
                from rich.text import Text

                self._console.print(Text(text, style=style), soft_wrap=True)
            else:
                at = time.strftime("%Y-%m-%d %H:%M:%S  ", time.localtime(self._now()))
                print((at if stamp else "") + text, file=self._file, flush=True)
        except (BrokenPipeError, ValueError):  # ValueError: the file was closed
            self._silent = True

    def _facts(self) -> list[str]:
        """The numbers of the newest step, each with its name."""
        m = self._progress or {}
        facts = [f"loss {m['loss']:.4f}", f"lr {m['lr']:.2e}"]
        if m.get("grad_norm") is not None:
            facts.append(f"grad norm {m['grad_norm']:.3f}")
        facts.append(f"{m['tokens_per_second']:,.0f} tokens/s")
        if m.get("mfu") is not None:
            facts.append(f"MFU {100 * m['mfu']:.1f} %")
        if m.get("memory"):
            facts.append(size(m["memory"]))
        if m.get("eta") is not None:
            facts.append(f"ETA {duration(m['eta'])}")
        if m.get("dollars"):
            price = m.get("dollars_per_hour")
            facts.append(f"${m['dollars']:.2f}" + (f" at ${price:.2f}/h" if price else ""))
        if self._saved is not None:
            step, at = self._saved
            facts.append(f"saved step {step:,} ({duration(self._now() - at)} ago)")
            if self._interval is not None and self._console is not None:  # logs say it at each save
                facts.append(f"saving every {duration(self._interval)}")
        else:
            facts.append("not saved yet")
        return facts

    def _panel(self) -> RenderableType:
        """The live part: a bar, and below it the numbers."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        with self._lock:
            m = self._progress
            if m is None:
                return Text("")
            training = m["type"] == "step"
            done, total = (m["step"], m["steps"]) if training else (m["done"], m.get("total"))
            title = m["stage"] if training else f"prepare: {m['what']}"
            count = f"{done:,}/{total:,}" if training else _amount(m)
            facts = " · ".join(self._facts()) if training else ""
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column()
        bar.add_column(ratio=1)
        bar.add_column()
        bar.add_row(Text(title, style="bold"), ProgressBar(total or None, done), Text(count))
        return Group(bar, Text(facts, style="cyan")) if facts else bar


def _parts(phases: Iterable[tuple[str, float]]) -> str:
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases)
    return f" ({text})" if text else ""


def _amount(m: Message) -> str:
    amounts = [m["done"]] if m.get("total") is None else [m["done"], m["total"]]
    shown = (f"{a:,}" if isinstance(a, int) else f"{a:,.1f}" for a in amounts)
    return f"{'/'.join(shown)} {m['unit']}"


def _is_terminal(file: TextIO) -> bool:
    return file.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

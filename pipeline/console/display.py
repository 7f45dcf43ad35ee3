"""What `pion run` shows: a live panel on a terminal, plain timestamped lines in a log.

The messages are defined in console/messages.py.
"""

from __future__ import annotations

import contextlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TextIO, assert_never

from pipeline.console.formats import beginning, duration, measured, money, printable, size
from pipeline.console.messages import (
    CheckpointSaved,
    Evaluation,
    Note,
    Phase,
    PrepareProgress,
    Sample,
    Shown,
    StageState,
    Step,
    Summary,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

STATES = {
    "done": "done",
    "resume": "to be continued",
    "todo": "to do",
    "stale": "to be redone",
    "started": "starts",
}
# The shortest time between two lines about `prepare` in a log.
PREPARE_SECONDS = 5.0
# Of a sample, a terminal shows the beginnings of so many lines.
SAMPLE_LINES = 3
# Seconds between two drawings of the live panel.
REFRESH = 0.25
# So many messages wait for a terminal that is slow or held (Ctrl-S), or a pipe that nobody reads.
# After that, the numbers of steps are left out, and each other message is said a little later, so
# that a terminal which is only slow can follow.
MOST_WAITING = 2_000
LATER_SECONDS = 0.001


class Display:
    """Shows messages in their order, from any thread.

    A context manager. By default, `live` depends on whether `file` is a terminal. `say` waits at
    most LATER_SECONDS. Only one thread of the display touches the file and rich, so there is no
    lock. If nobody reads `file`, or `file` can't be written, the run continues.
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
        # What was said, each with its time; None: the end. Signal handlers may call its `put`.
        self._said: queue.SimpleQueue[tuple[float, Shown] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._draw, name="display", daemon=True)
        self._at = now()
        self._phases: list[tuple[str, float]] = []
        self._progress: Step | PrepareProgress | None = None
        self._saved: tuple[int, float] | None = None
        self._interval: float | None = None
        self._prepare_shown: dict[str, float] = {}
        self._live: Live | None = None
        self._width = 0
        if live or (live is None and is_terminal(self._file)):
            from rich.console import Console
            from rich.live import Live

            self._live = Live(
                console=Console(file=self._file, force_terminal=True, highlight=False),
                get_renderable=self._panel,
                auto_refresh=False,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Show what is left, then give the terminal back."""
        if self._thread.is_alive():
            self._said.put(None)
            self._thread.join()
            self._live = None

    def say(self, message: Shown) -> None:
        """Show one message soon; before the block and after its end, at once."""
        if not self._thread.is_alive():
            self._at = self._now()
            self._show(message)
            return
        if self._said.qsize() > MOST_WAITING:
            if isinstance(message, Step):
                return
            time.sleep(LATER_SECONDS)
        self._said.put((self._now(), message))
        if isinstance(message, Note) and message.last:
            self.__exit__()

    def _draw(self) -> None:
        """Draw until the end was said."""
        with contextlib.ExitStack() as drawing:
            if self._live is not None:
                drawing.callback(self._write, self._live.stop)
                self._write(self._live.start)
                # Ctrl-Z and SIGKILL would leave a terminal without a cursor.
                self._write(lambda: self._live and self._live.console.show_cursor(True))
            drawn = time.monotonic()
            while True:
                with contextlib.suppress(queue.Empty):
                    said = self._said.get(timeout=None if self._live is None else REFRESH)
                    if said is None:
                        return
                    self._at, message = said
                    self._show(message)
                if self._live is not None and time.monotonic() - drawn >= REFRESH:
                    self._write(self._refresh)
                    drawn = time.monotonic()

    def _show(self, message: Shown) -> None:
        match message:
            case Phase():
                self._show_phase(message)
            case PrepareProgress():
                self._show_prepare(message)
            case StageState():
                self._show_stage(message)
            case Step():
                self._progress = message
                if self._live is None:
                    facts = "  ".join(self._facts(message))
                    self._line(f"{message.stage} step {message.step:,}/{message.steps:,}  {facts}")
            case Evaluation(stage, step, loss, sem, accuracy, rewarded):
                words = f"held-out loss {measured(loss, sem, 4)}"
                if rewarded:
                    words = f"held-out reward {measured(0.0 - loss, sem, 4)}"
                if accuracy is not None:
                    words += f", {100 * accuracy:.1f} % right"
                self._line(f"{stage} step {step:,}: {words}", style="green")
            case Sample(stage, step, prompt, text):
                self._line(f"{stage} step {step:,}: sample for {prompt!r}")
                lines = text.strip("\n").split("\n")
                if self._live is not None:  # the page of the run has all
                    most = self._live.console.width - 7
                    lines, more = lines[:SAMPLE_LINES], len(lines) > SAMPLE_LINES
                    lines = [beginning(line, most) for line in lines]
                    lines[-1] += "…" * (more and len(lines[-1]) <= most)
                for line in lines:
                    self._line(f"    | {line}", style="dim", stamp=False)
            case CheckpointSaved():
                self._show_checkpoint(message)
            case Note():
                self._line(message.text, style="yellow")
            case Summary(rows):
                self._progress = None
                width = max((len(label) for label, _ in rows), default=0)
                for label, value in rows:
                    self._line(f"{label:<{width}}  {value}", stamp=False)
            case _:
                assert_never(message)

    # ------------------------------------------------------------ longer messages

    def _show_phase(self, phase: Phase) -> None:
        if phase.parts:
            self._line(f"{phase.name}: {phase.seconds:.1f} s{_parts(phase.parts.items())}")
        elif phase.total:
            self._line(f"{phase.name} after {phase.seconds:.1f} s{_parts(self._phases)}")
            self._phases.clear()
        else:
            self._phases.append((phase.name, phase.seconds))
            if self._live is None:
                self._line(f"{phase.name}: {phase.seconds:.1f} s")

    def _show_prepare(self, progress: PrepareProgress) -> None:
        self._progress = progress
        last = self._prepare_shown.get(progress.what)
        finished = progress.total is not None and progress.done >= progress.total
        due = last is None or finished or self._at - last >= PREPARE_SECONDS
        if self._live is None and due:
            self._prepare_shown[progress.what] = self._at
            self._line(f"{progress.stage}: {progress.what} {_amount(progress)}")

    def _show_stage(self, stage: StageState) -> None:
        started = stage.state == "started"
        text = f"{stage.stage}: {STATES[stage.state]}" + (f" ({stage.why})" if stage.why else "")
        self._line(text, style="bold" if started else "")
        self._progress = None
        if started and stage.steps:
            self._saved = None

    def _show_checkpoint(self, checkpoint: CheckpointSaved) -> None:
        self._saved = (checkpoint.step, self._at)
        self._interval = checkpoint.interval
        if self._live is None:
            stall, every = checkpoint.stall, checkpoint.interval
            details = [
                "" if stall is None else f"training stood still for {stall:.2f} s",
                "" if every is None else f"saving every {duration(every)}",
            ]
            detail = ", ".join(filter(None, details))
            saved = f"saved ({detail})" if detail else "saved"
            self._line(f"{checkpoint.stage} step {checkpoint.step:,}: {saved}")

    # ------------------------------------------------------------ writing

    def _line(self, text: str, *, style: str = "", stamp: bool = True) -> None:
        text = printable(text)
        if (live := self._live) is not None:
            from rich.text import Text

            self._write(self._refresh)
            self._write(lambda: live.console.print(Text(text, style=style)))
            return
        at = time.strftime("%Y-%m-%d %H:%M:%S  ", time.localtime(self._at)) if stamp else ""
        self._write(lambda: print(at + text, file=self._file, flush=True))

    def _refresh(self) -> None:
        """Draw the panel again. A terminal that became narrower has wrapped the last one, so the
        cursor first goes up by the rows that are new."""
        from rich.control import Control
        from rich.segment import ControlType, Segment

        if (live := self._live) is None:
            return
        console, before = live.console, self._width
        self._width = console.width
        if self._width < before:
            old = console.options.update(width=before)
            lines = console.render_lines(self._panel(), old, pad=False)
            rows = sum(-(-Segment.get_line_length(line) // self._width) - 1 for line in lines)
            up = [(ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)] * rows
            console.control(Control(*up))
        live.refresh()

    def _write(self, write: Callable[[], object]) -> None:
        """Call `write`. What can't be written is left out; the next line may be possible again."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file was closed
            write()

    def _facts(self, step: Step) -> list[str]:
        """Return the numbers of a step, each with its name."""
        price = f" at {money(step.dollars_per_hour)}/h" if step.dollars_per_hour else ""
        facts = [
            f"loss {step.loss:.4f}" if step.reward is None else f"reward {step.reward:.4f}",
            f"lr {step.lr:.2e}",
            "" if step.accuracy is None else f"{100 * step.accuracy:.1f} % right",
            "" if step.margin is None else f"margin {step.margin:.3f}",
            "" if step.signal is None else f"signal {100 * step.signal:.0f} %",
            f"judging {duration(judging)} an answer"
            if (judging := step.judging or 0) >= 0.05
            else "",
            "" if step.grad_norm is None else f"grad norm {step.grad_norm:.3f}",
            f"{step.tokens_per_second:,.0f} tokens/s",
            "" if step.mfu is None else f"MFU {100 * step.mfu:.1f} %",
            size(step.memory) if step.memory else "",
            "" if step.eta is None else f"ETA {duration(step.eta)}",
            f"{money(step.dollars)}{price}" if step.dollars else "",
        ]
        if self._saved is None:
            facts.append("not saved yet")
        else:
            saved, at = self._saved
            now = self._at if self._live is None else self._now()
            facts.append(f"saved step {saved:,} ({duration(now - at)} ago)")
            if self._interval is not None and self._live is not None:  # logs show it when saving
                facts.append(f"saving every {duration(self._interval)}")
        return [fact for fact in facts if fact]

    def _panel(self) -> RenderableType:
        """Return the live part: a bar, and the numbers below it."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table
        from rich.text import Text

        match self._progress:
            case None:
                return Text("")
            case Step() as step:
                done, total = float(step.step), float(step.steps)
                title, count = step.stage, f"{step.step:,}/{step.steps:,}"
                facts = " · ".join(self._facts(step))
            case PrepareProgress() as progress:
                done, total = progress.done, progress.total or 0.0
                title = f"{progress.stage}: {progress.what}"
                count = _amount(progress)
                facts = ""
        bar = Table.grid("", Column(ratio=1), "", padding=(0, 1), expand=True)
        name = Text(printable(title), style="bold")
        bar.add_row(name, ProgressBar(total or None, done), Text(printable(count)))
        if not facts:
            return bar
        # A line that is printed unwrapped draws the panel, too, and would cut the facts.
        return Group(bar, Text(printable(facts), "cyan", no_wrap=False, overflow="fold"))


def _parts(phases: Iterable[tuple[str, float]]) -> str:
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in phases)
    return f" ({text})" if text else ""


def _amount(progress: PrepareProgress) -> str:
    amounts = [progress.done] if progress.total is None else [progress.done, progress.total]
    digits = 1 if amounts[-1] >= 1 else 3
    shown = (f"{a:,}" if isinstance(a, int) else f"{a:,.{digits}f}" for a in amounts)
    facts = [
        f"{'/'.join(shown)} {progress.unit}",
        progress.detail,
        "" if progress.eta is None else f"ETA {duration(progress.eta)}",
        "" if progress.dollars is None else f"{money(progress.dollars)} in all",
    ]
    return ", ".join(filter(None, facts))


def is_terminal(file: TextIO) -> bool:
    """Return whether `file` is a terminal that can show a line and remove it again."""
    return file.isatty() and os.environ.get("TERM", "") not in ("", "dumb")

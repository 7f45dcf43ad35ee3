"""What a run has done: the facts that its page, its comparisons and its model card show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.console.formats import moment, money, printable
from pipeline.cost.costs import Costs, MachineCost
from pipeline.job import STAGES, Job
from pipeline.job.stages import CONVERSING, WORDS
from pipeline.report.results import Evaluated, Prepared, Published, result_of
from pipeline.report.worse import made_worse
from pipeline.state.head import Head
from pipeline.state.notes.stop_requests import describe_stop
from pipeline.state.record_json import Damaged
from pipeline.state.rows.row_types import Unreadable
from pipeline.state.run_state import SILENCE_SECONDS
from pipeline.state.status.run_status import last_end, last_end_in_words

Row = Mapping[str, Any]

STAGE_NAMES = {stage: words.training for stage, words in WORDS.items()}
# These settings always differ, and say nothing about the training.
_NAMES = ("name", "store")

# Fields of a "training" event that don't describe how the attempt trained.
_NOT_ABOUT_TRAINING = ("event", "at")


@dataclass(frozen=True)
class RunHistory:
    """A run, as recorded in its store.

    Attributes:
        known_job: the job that the run was last started with; None if this Pion can't read it.
        url: the run's address: its store and its name.
        head: the finished stages and the checkpoints.
        events: what the run's owners reported, oldest first.
        metrics: training stage → rows of the steps that lead to its present state, by step.
        costs: what all machines cost, by cause.
        unreadable: the rows of events and metrics that are missing because they can't be read.
        status: what `pipeline.state.status.run_status.run_status` returned.
        deadline, deadline_lines: what `pipeline.state.status.run_status.deadline_of`
            returned.
        now: when everything was read, in Unix seconds.
        silence: an owner without a sign of life for this many seconds is presumed dead.
    """

    known_job: Job | None
    url: str
    head: Head
    events: Sequence[Row]
    metrics: Mapping[str, Sequence[Row]]
    costs: Costs
    unreadable: Unreadable = field(default_factory=Unreadable)
    status: Mapping[str, Any] = field(default_factory=dict)
    deadline: Mapping[str, Any] | None = None
    deadline_lines: Sequence[str] = ()
    now: float = 0.0
    silence: float = SILENCE_SECONDS

    @property
    def job(self) -> Job:
        """The job, for those who know that it can be read."""
        assert self.known_job is not None
        return self.known_job

    @property
    def name(self) -> str:
        """The run's name in its store."""
        return self.url.rpartition("/")[2]

    @property
    def stages(self) -> list[str]:
        """The stages in order: those of the job, as far as it is known, and the finished ones."""
        ours = STAGES if self.known_job is None else self.known_job.stages
        return [stage for stage in STAGES if stage in ours or stage in self.head.stages]

    @property
    def results(self) -> Mapping[str, Any]:
        """What the evaluate stage measured; empty before it is done. Raises Damaged."""
        return result_of(Evaluated, self.head, "evaluate", self.url)

    @property
    def published(self) -> Mapping[str, Any]:
        """What the publish stage reported; empty before it is done. Raises Damaged."""
        return result_of(Published, self.head, "publish", self.url)

    @property
    def text(self) -> Mapping[str, Any]:
        """What the prepare stage reported of the text; empty before it is done. Raises Damaged."""
        prepared = result_of(Prepared, self.head, "prepare", self.url)
        text: Mapping[str, Any] = prepared.get("pretrain", {})
        return text

    @property
    def finished_at(self) -> float | None:
        """When the last stage was finished, in Unix seconds; None before that."""
        done = [self.head.stages.get(stage) for stage in self.stages]
        return None if None in done else max(record.at for record in done if record is not None)

    @property
    def end(self) -> Row | None:
        """How the last attempt ended; None if it goes on, was killed or ended well."""
        return last_end(self.events)

    def steps(self, stage: str) -> list[Row]:
        """Return the rows of the optimizer steps of `stage`, in order."""
        return [row for row in self.metrics.get(stage, ()) if "loss" in row]

    def measured(self, key: str) -> dict[str, list[Row]]:
        """Return the rows of steps that measured `key`, of each stage that has such rows."""
        rows_of_stages = {
            stage: [row for row in self.steps(stage) if row.get(key)]
            for stage in self.job.train_stages
        }
        return {stage: rows for stage, rows in rows_of_stages.items() if rows}

    def samples(self) -> list[Row]:
        """Return the texts that the model wrote while it was trained, in order.

        Each has its `stage`, `step`, `prompt` and `text`, which follows the prompt: after
        fine-tuning, on a line of its own.
        """
        return [
            {"stage": stage, "step": row["step"], "prompt": row["sample"]["prompt"]}
            | {"text": "\n" * (stage in CONVERSING) + row["sample"]["text"]}
            for stage, rows in self.metrics.items()
            for row in rows
            if "sample" in row
        ]

    def attempts(self) -> list[Row]:
        """Return a row for each attempt that trained: when, where, its price, its steps."""
        rows: list[Row] = []
        # In one pass: a run on spot machines has hundreds of attempts.
        last_rows = {
            (stage, row["epoch"]): row for stage, kept in self.metrics.items() for row in kept
        }
        for event in self.of_kind("training"):
            last = last_rows.get((event["stage"], event["epoch"]))
            if last is None:
                continue
            machine = self.costs.machine_of(event["epoch"])
            price = None if machine is None else machine.price
            rows.append(
                {"at": moment(event["at"])}
                | {key: value for key, value in event.items() if key not in _NOT_ABOUT_TRAINING}
                | {"to_step": last["step"], "seconds": last["at"] - event["at"]}
                | ({} if price is None else {"dollars_per_hour": price})
            )
        return rows

    def left_out(self) -> list[tuple[str, str]]:
        """Return (when, which rows and why) of each range of rows that is not trained on.

        A fork has the ranges of the run it was forked from, but not its attempts.
        """
        return [
            (
                moment(left.at),
                f"{stage} rows {left.first:,} to {left.stop - 1:,} (step {left.step:,}: "
                f"{printable(left.why)})",
            )
            for stage, skipped in self.head.left_out.items()
            for left in skipped
        ]

    def warnings(self) -> list[str]:
        """Return what the training stages warned of, in order."""
        return [
            printable(row["warning"]["text"])
            for rows in self.metrics.values()
            for row in rows
            if "warning" in row
        ]

    def remarks(self) -> list[str]:
        """Return how the last attempt ended, a request to stop, the rows left out, and what else a
        person should know."""
        stop, missing = self.status["stop"], self.unreadable.describe()
        return [
            *([last_end_in_words(self.end)] if self.end else []),
            *([f"asked to stop: {describe_stop(stop)}"] if stop else []),
            *self.warnings(),
            *self._worse(),
            *(f"left out: {sentence}" for _, sentence in self.left_out()),
            *self.status["notes"],
            *([missing] if missing else []),
        ]

    def _worse(self) -> list[str]:
        """Return which stages made their model worse, or that the results are damaged."""
        try:
            return made_worse(self.results)
        except Damaged as error:
            return [str(error)]

    def hops(self) -> list[tuple[str, list[str]]]:
        """Return (when, lines of the receipt) of each change of machine, with both prices."""
        receipts = []
        for event in self.of_kind("hop"):
            receipt = list(event["receipt"])
            after = self.costs.machine_of(event["epoch"])
            owners = map(self.costs.machine_of, range(event["epoch"], 0, -1))
            before = next((m for m in owners if m not in (None, after)), None)
            if before and after and (before.price or after.price):
                receipt.append(f"price: {_price(before)} → {_price(after)}")
            receipts.append((moment(event["at"]), receipt))
        return receipts

    def seconds_of(self, stage: str) -> float | None:
        """Return how long the current work of `stage` took; None if that is not known.

        A training stage took what its attempts took. Another stage took what the `pion run` that
        finished it spent on it.
        """
        if stage in self.metrics:
            spent = [row["seconds"] for row in self.attempts() if row["stage"] == stage]
            return sum(spent) if spent else None
        if stage not in self.head.stages:
            return None
        phases = [phase for phase in self.of_kind("phase") if phase["name"] == stage]
        return phases[-1]["seconds"] if phases else None

    def of_kind(self, kind: str) -> list[Row]:
        """Return the events of one kind, oldest first."""
        return [event for event in self.events if event["event"] == kind]


def differing(jobs: Sequence[Job | None]) -> dict[str, list[Any]] | None:
    """Return the settings in which jobs differ: dotted path → the value of each job, in order.

    A job that is not known does not count, and has None everywhere. Returns None if fewer than two
    are known.
    """
    dumped = [None if job is None else job.model_dump(mode="json", by_alias=True) for job in jobs]
    runs = [dict(_paths(settings or {})) for settings in dumped]
    known_jobs = [run for run in runs if run]
    if len(known_jobs) < 2:
        return None
    differences = {}
    for path in dict.fromkeys(path for one in known_jobs for path in one):
        values = [one.get(path) for one in known_jobs]
        if path not in _NAMES and any(value != values[0] for value in values):
            differences[path] = [run.get(path) for run in runs]
    return differences


def _paths(values: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        path = f"{under}.{key}" if under else key
        if isinstance(value, dict) and value:
            yield from _paths(value, path)
        else:
            yield path, value


def _price(machine: MachineCost) -> str:
    price = "an unknown price" if machine.price is None else f"{money(machine.price)}/h"
    return f"{machine.describe()} at {price}"

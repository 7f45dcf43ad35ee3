"""What follows training: evaluation, publishing, the report and the closing summary of a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console.formats import moment, printable
from pipeline.cost.by_cause import Costs, History, MachineCost, costs_of, history_of
from pipeline.job import Job
from pipeline.job.digest import Digests
from pipeline.models.bring import bring_model
from pipeline.state.claim import taken_over
from pipeline.state.metrics import kept_rows
from pipeline.state.owner import Owner
from pipeline.state.patience import Patience
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import DEFAULT_STORE, Missing
from pipeline.state.workspace import Workspace

Say = Callable[[dict[str, Any]], None]
Row = dict[str, Any]

REPORT = "report.html"
COMPARED_TEXTS = 4


@dataclass(frozen=True)
class _StoredParts:
    """Finished parts of an evaluation, one write-once object each under its digest.

    Only the owner of the run adds to them: `session` is this process's.
    """

    run: RunState
    digest: str
    session: str
    patiently: Patience

    def load(self, name: str) -> Row | None:
        try:
            return json.loads(self.patiently(lambda: self.run.store.read(self._key(name))))
        except Missing:
            return None

    def save(self, name: str, result: Row) -> Row:
        """Keep a part and return it, or the one that is there: an owner of before may have added
        its own in the moment in which the run was taken over, and it is as good.

        Raises Fenced, with nothing stored, if another process owns the run.
        """
        return self.patiently(lambda: self._save(name, result))

    def _save(self, name: str, result: Row) -> Row:
        head = self.run.read()  # a heartbeat tells of a new owner only seconds later
        if head is None or head.claims[0].owner.session != self.session:
            raise taken_over(self.run, head)
        try:
            return json.loads(self.run.store.read(self._key(name)))
        except Missing:
            self.run.store.write(self._key(name), json.dumps(result).encode())
            return result

    def _key(self, name: str) -> str:
        return self.run.key(f"stages/evaluate/{self.digest}-parts/{name}.json")


# Only what is asked of the store is repeated after an outage. No measure is taken twice for it, and
# publishing, which asks nothing of the store, happens once.


def finish_evaluate(
    job: Job, run: RunState, digests: Digests, say: Say, patiently: Patience
) -> Row:
    """Measure the models of the finished training stages."""
    from pipeline.stages.evaluate import evaluate_run

    head = patiently(lambda: _head(run))
    return evaluate_run(
        job,
        models=patiently(lambda: {s: model_folder(run, head, s) for s in job.train_stages}),
        pretrain_data=patiently(lambda: _data_folder(run, digests, "pretrain")),
        sft_data=patiently(lambda: _data_folder(run, digests, "sft")),
        parts=_StoredParts(run, digests.stages["evaluate"], Owner.me().session, patiently),
        say=say,
        sleep=run.clock.sleep,
    )


def finish_publish(job: Job, run: RunState, digests: Digests, say: Say, patiently: Patience) -> Row:
    """Publish the model of the last training stage."""
    from pipeline.stages.publish import publish_run

    assert job.publish is not None
    head = patiently(lambda: _head(run))
    model = patiently(lambda: model_folder(run, head, job.train_stages[-1]))
    history = patiently(lambda: history_of(run))
    costs = patiently(lambda: costs_of(run, head, time.time(), history))
    return publish_run(
        job,
        model=model,
        tokenizer_path=model / "tokenizer.json",
        results=head.stages["evaluate"].result,
        texts=patiently(lambda: _held_out_texts(job, run, digests)),
        metrics={
            stage: kept_rows(history.metrics[stage], head, stage) for stage in job.train_stages
        },
        lineage=lineage(head, history, costs),
        cost=costs.describe() if job.publish.cost else None,
        say=say,
    )


def write_run_report(job: Job, run: RunState) -> Path:
    """Write `report.html` into the run's folder from what its store holds.

    Returns where it is on this machine; a remote store has it too.
    """
    from pipeline.report.page import write_report

    head = _head(run)
    history = history_of(run)
    rows = {stage: kept_rows(history.metrics[stage], head, stage) for stage in job.train_stages}
    evaluated = head.stages.get("evaluate")
    workspace = Workspace(run.store, run.name)
    events = history.events
    phases = [event for event in events if event["event"] == "phase"]
    newest = max((event["epoch"] for event in phases), default=0)
    costs = costs_of(run, head, time.time(), history)
    path = write_report(
        workspace.folder(REPORT),
        job=job,
        head_info=_head_info(job, run, head, events),
        metrics={stage: [r for r in rows[stage] if "loss" in r] for stage in rows},
        evaluations={stage: [r for r in rows[stage] if "held_out_loss" in r] for stage in rows},
        samples=[
            {"stage": stage, **row["sample"], "text": _reply(stage, row["sample"]["text"])}
            for stage in rows
            for row in rows[stage]
            if "sample" in row
        ],
        results=evaluated.result if evaluated else {},
        lineage=lineage(head, history, costs),
        timings=[phase for phase in phases if phase["epoch"] == newest],
        hops=_hops(events, costs),
        costs=costs,
        changes=[{**e, "at": moment(e["at"])} for e in events if e["event"] == "changed"],
    )
    if workspace.remote:
        run.store.write(run.key(REPORT), path)
        run.store.flush()
    return path


def summary_rows(job: Job, run: RunState) -> list[list[str]]:
    """[label, value] pairs that close a `pion run`: where everything is, and how to use it."""
    head = _head(run)
    rows = [["run", run.url]]
    local = run.store.local_path(run.key(REPORT))
    if run.store.list(run.key(REPORT)):
        rows.append(["report", _shown(local) if local else f"{run.store.url}/{run.key(REPORT)}"])
    evaluated = head.stages.get("evaluate")
    if evaluated is not None:
        results = evaluated.result
        for name in (*job.train_stages, "ngram", "untrained"):
            bits = results.get(name, {}).get("bits_per_byte")
            if bits is not None:
                rows.append([f"{name} bits per byte", f"{bits:.3f}"])
    costs = costs_of(run, head, time.time())
    rows.append(["time" if costs.dollars is None else "cost", costs.describe()])
    published = head.stages.get("publish")
    if published is not None:
        result = published.result
        rows.append(["model", str(result.get("url") or _shown(Path(result["path"])))])
        rows.append(["card", str(result.get("card"))])
    default = job.store == DEFAULT_STORE
    rows.append(["try it", f"pion chat {'' if default else run.store.url + '/'}{job.name}"])
    return rows


def lineage(head: Head, history: History, costs: Costs) -> list[Row]:
    """A row for each attempt that trained: when, where, at what price, from and to which step.
    Then one for each `left_out` range of rows."""
    rows = []
    metrics = {stage: kept_rows(rows, head, stage) for stage, rows in history.metrics.items()}
    for event in history.events:
        if event["event"] != "training":
            continue
        mine = [row for row in metrics[event["stage"]] if row["epoch"] == event["epoch"]]
        if mine:
            fields = {k: v for k, v in event.items() if k not in ("event", "at")}
            seconds = mine[-1]["at"] - event["at"]
            reached = {"to_step": mine[-1]["step"], "seconds": seconds}
            machine = costs.machine_of(event["epoch"])
            if machine is not None and machine.price is not None:
                reached["dollars_per_hour"] = machine.price
            rows.append({"at": moment(event["at"]), **fields, **reached})
    # A fork has these from the run it was forked from, whose attempts it knows nothing of.
    for stage, skipped in head.skipped.items():
        for left in skipped:
            which = f"{stage} rows {left.first:,} to {left.stop - 1:,}"
            text = f"{which} (step {left.step:,}: {printable(left.why)})"
            rows.append({"at": moment(left.at), "stage": stage, "left_out": text})
    return rows


def _hops(events: Sequence[Row], costs: Costs) -> list[Row]:
    """The receipts of changes of machine, each with what the machines cost."""
    rows = []
    for event in events:
        if event["event"] == "hop":
            receipt = list(event["receipt"])
            after = costs.machine_of(event["epoch"])
            owners = map(costs.machine_of, range(event["epoch"], 0, -1))
            before = next((m for m in owners if m not in (None, after)), None)
            if before and after and (before.price or after.price):
                receipt.append(f"price: {_price(before)} → {_price(after)}")
            rows.append({"at": moment(event["at"]), "receipt": receipt})
    return rows


def _price(machine: MachineCost) -> str:
    unknown = machine.price is None
    return f"{machine.describe()} at {'an unknown price' if unknown else f'${machine.price:.2f}/h'}"


def model_folder(run: RunState, head: Head, stage: str) -> Path:
    """The folder of a finished training stage's last checkpoint, on this machine."""
    key = head.stages[stage].checkpoint
    assert key is not None
    return bring_model(run, key)


def _head(run: RunState) -> Head:
    head = run.read()
    assert head is not None
    return head


def _data_folder(run: RunState, digests: Digests, part: str) -> Path | None:
    if part not in digests.data:
        return None
    return Workspace(run.store, run.name).bring_data(digests.data[part])


def _held_out_texts(job: Job, run: RunState, digests: Digests) -> list[str]:
    """A few held-out rows as text: real input to compare the exported model on."""
    from pion.data.tokenizer import Tokenizer
    from pipeline.data.prepared import open_data

    folder = _data_folder(run, digests, "pretrain") or _data_folder(run, digests, "sft")
    assert folder is not None
    data = open_data(folder)
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    stream = data.stream("held_out", seed=job.seed, window=job.data.window)
    rows = [stream.row(i) for i in range(min(COMPARED_TEXTS, stream.total_rows))]
    return [tokenizer.decode(row.tokens.tolist()) for row in rows]


def _head_info(job: Job, run: RunState, head: Head, events: Sequence[Row]) -> Row:
    published = head.stages.get("publish")
    paths = {"run": run.url}
    for event in events:
        if event["event"] == "forked":
            where = f"{event['stage']} step {event['at_step']:,}"
            paths["forked from"] = f"{event['from']} at {where}"
    if published is not None:
        paths["model"] = str(published.result.get("url") or published.result.get("path"))
        paths["card"] = str(published.result.get("card"))
    stages = []
    for stage in job.stages:
        record = head.stages.get(stage)
        step = next((e.step for e in head.checkpoints if e.stage == stage), None)
        stages.append(
            {
                "stage": stage,
                "status": f"finished {moment(record.at)}" if record else "not finished",
                "digest": record.digest if record else "",
                "step": step,
            }
        )
    return {
        "run": paths["run"],
        "parameters": published.result.get("parameters") if published else None,
        "paths": paths,
        "stages": stages,
    }


def _reply(stage: str, text: str) -> str:
    """What follows a prompt: its continuation, or after fine-tuning an answer of its own."""
    return f"\n{text}" if stage == "sft" else text


def _shown(path: Path) -> str:
    """A path as short as it can be said from here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)

"""What pretraining reads in its phases, as far as it is known before the start, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from rich.table import Table

from pion.data.order import RowOrder
from pion.data.phased_order import shares_of
from pipeline.console.formats import minutes_or_hours, money, short_amount
from pipeline.data.prepared import phased_order
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.job.mixes import source_names
from pipeline.job.train_sections import phases_of
from pipeline.machine.time_limit import within_or
from pipeline.rent.plan.estimate import Estimate
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store

# Up to so many passes, text that is read again is worth about as much as new text (2305.16264).
MOST_PASSES = 4
# A store that needs more seconds to answer is not waited for.
STORE_SECONDS = 8.0


@dataclass(frozen=True)
class SourceRead:
    """What a phase reads from a source. `mix` is its share or passes, as the job has them."""

    name: str
    mix: float | str
    share: float | None
    tokens: float | None
    passes: float | None  # in this phase

    def __str__(self) -> str:
        return f"{self.name} {self.cells[0]} ({self.cells[1]} tokens, {self.cells[2]})"

    @property
    def cells(self) -> tuple[str, str, str]:
        """The share, the tokens and the passes in words."""
        share = str(self.mix) if self.share is None else f"{self.share:.3g} %"
        tokens = "?" if self.tokens is None else short_amount(self.tokens)
        return share, tokens, "?" if self.passes is None else f"{self.passes:.2g}x"


@dataclass(frozen=True)
class PhaseRead:
    """What a phase of pretraining reads, from its first step to its last one."""

    first: int
    last: int
    seq_len: int
    rope_theta: float
    tokens: int
    sources: tuple[SourceRead, ...]

    def __str__(self) -> str:
        read = ", ".join(map(str, self.sources))
        return f"steps {self.first:,}–{self.last:,}, rows of {self.seq_len:,} tokens: {read}"


def phases_read(job: Job, known: Sequence[int]) -> list[PhaseRead]:
    """Return what the phases of pretraining read; nothing if all read the same. `known` has the
    training rows of each source, if they are known. Raises BadInput for a mix that can't be
    read."""
    names, found, mix = source_names(job.data), list[PhaseRead](), dict[str, float | str]()
    rows = dict(zip(names, known))
    shares = _shares(job, rows)
    for phase, shared in zip(job.mix_phases, shares):
        mix = dict(phase.mix or mix)
        trained = phases_of(job.section("pretrain"))[len(found)]
        sources = []
        for name, asked in mix.items():
            share = shared.get(name)
            read = None if share is None else float(share * phase.rows)
            tokens = None if read is None else read * job.data.seq_len
            passes = None if read is None or name not in rows else read / rows[name]
            percent = None if share is None else float(100 * share)
            sources.append(SourceRead(name, asked, percent, tokens, passes))
        batch = job.section("pretrain").global_batch
        found.append(
            PhaseRead(
                phase.start // batch + 1,
                (phase.start + phase.rows) // batch,
                phase.length * job.data.seq_len,
                trained.rope_theta or job.model_config_resolved().rope_theta,
                phase.rows * job.data.seq_len,
                tuple(sources),
            )
        )
    return found


def _shares(job: Job, rows: dict[str, int]) -> list[dict[str, Fraction]]:
    """Return the share of each source in each phase, as far as it does not depend on unknown
    rows."""
    if rows and job.mix_phases:
        size = job.data.shard_rows
        orders = [
            RowOrder([size] * (n // size) + [n % size] * (n % size > 0), name, 0, 1)
            for name, n in rows.items()
        ]
        return phased_order(orders, (list(rows), job.mix_phases), job.seed).shares
    found: list[dict[str, Fraction]] = []
    for phase in job.mix_phases:
        if phase.mix is None:
            found.append(found[-1])
        elif any(isinstance(share, str) for share in phase.mix.values()):
            found.append({})
        else:
            found.append(shares_of(phase.mix, {}, phase.rows))
    return found


def warnings_of(job: Job, phases: Sequence[PhaseRead], known: Sequence[int]) -> Iterator[str]:
    """Yield what will probably disappoint in what pretraining reads."""
    if job.base is not None and job.pretrain is not None and len(job.data.sources) == 1:
        yield (
            "nothing replays what the model has learned; 5 % of similar text (25 % for another "
            "language) keeps it"
        )
    config = job.model_config_resolved()
    theta, length = config.rope_theta, job.data.seq_len
    for number, phase in enumerate(phases_of(job.section("pretrain")) if job.pretrain else ()):
        before, where = theta, f"pretrain.phases.{number}.rope_theta"
        theta, read = phase.rope_theta or theta, phase.seq_len or length
        least = float(f"{0.0424 * read**1.628:.2g}")
        changed, length = theta != before or read != length, read
        if changed and config.positions == "rotary" and theta < least:
            yield (
                f"{where}: {theta:,.0f} is low for {read:,} tokens; from {least:,.0f} on, distant "
                "tokens can be told apart (arXiv 2405.14591)"
            )
        elif theta < before:
            yield f"{where}: {theta:,.0f} is lower than {before:,.0f}, which the model has learned"
    reads = [{source.name: source.passes or 0.0 for source in phase.sources} for phase in phases]
    for name in source_names(job.data):
        passes = [read.get(name, 0.0) for read in reads]
        if sum(passes) > MOST_PASSES:
            yield (
                f"{name} is read {sum(passes):.2g} times in all. Above {MOST_PASSES}, little is "
                f"left to learn (arXiv 2305.16264): read less of it in phase "
                f"{passes.index(max(passes)) + 1}"
            )
    if phases and not known:
        yield "passes, and shares next to them, are known after `pion run JOB --until prepare`"


def prepared_rows(job: Job) -> list[int]:
    """Return the training rows of each source, as the run has prepared them; [] if it has not."""
    run = RunState(open_store(job.store), job.name)
    head = within_or(None, STORE_SECONDS, run.read)
    record = None if head is None else head.stages.get("prepare")
    if record is None or record.digest != digest_job(job).stages["prepare"]:
        return []
    return [source["train_rows"] for source in record.result["pretrain"]["sources"]]


def phases_table(phases: Sequence[PhaseRead], on: Estimate | None, nodes: int) -> Table:
    """Return a table of the phases, with their time and dollars on a machine."""
    stage = None if on is None else next((s for s in on.stages if s.stage == "pretrain"), None)
    where = "" if on is None or stage is None else f" on {on.offer.gpu or 'CPU'}"
    table = Table(title=f"phases of pretrain{where}", title_justify="left", box=None)
    table.pad_edge = False
    for name in ("steps", "rows of", "time", "$", "source", "share", "tokens", "read"):
        left = name in ("steps", "source")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    for number, phase in enumerate(phases):
        time = dollars = "?"
        if on is not None and stage is not None and stage.tokens_per_second:
            speed = stage.by_phase[number] if stage.by_phase else stage.tokens_per_second
            hours = phase.tokens / speed / 3600
            price = on.offer.price
            time = minutes_or_hours(hours)
            dollars = "?" if price is None else money(hours * price * nodes, sign="")
        cells = [f"{phase.first:,}–{phase.last:,}", f"{phase.seq_len:,}", time, dollars]
        for source in phase.sources:
            table.add_row(*cells, source.name, *source.cells)
            cells = [""] * len(cells)
    return table

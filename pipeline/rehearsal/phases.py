"""What pretraining reads in its phases, as far as it is known before the start, and warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pion.data.phased_order import shares_of
from pion.errors import told
from pipeline.console.formats import short_amount
from pipeline.job import Job
from pipeline.job.mixes import source_names
from pipeline.job.train_sections import phases_of

# Up to so many passes, text that is read again is worth about as much as new text (2305.16264).
MOST_PASSES = 4


@dataclass(frozen=True)
class SourceRead:
    """What a phase reads from a source. `mix` is its share or passes, as the job has them."""

    name: str
    mix: float | str
    share: float | None = None
    tokens: float | None = None
    passes: float | None = None  # in this phase

    @property
    def cells(self) -> dict[str, str]:
        """What a table shows of the source."""
        return {
            "source": self.name,
            "share": str(self.mix) if self.share is None else f"{self.share:.3g} %",
            "tokens": "?" if self.tokens is None else short_amount(self.tokens),
            "read": "?" if self.passes is None else f"{self.passes:.2g}x",
        }


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
        cells = [source.cells for source in self.sources]
        read = ", ".join("{source} {share} ({tokens} tokens, {read})".format(**c) for c in cells)
        return f"steps {self.first:,}–{self.last:,}, rows of {self.seq_len:,} tokens: {read}"


def phases_read(job: Job, known: Sequence[int]) -> list[PhaseRead]:
    """Return what the phases of pretraining read; nothing if all read the same. `known` has the
    training rows of each source, if they are known. Raises BadInput for a mix that can't be
    read."""
    phases, mix, shares = list[PhaseRead](), dict[str, float | str](), dict[str, Fraction]()
    rows, section, length = dict(zip(source_names(job.data), known)), job.pretrain, job.data.seq_len
    for phase, trained in zip(job.mix_phases, phases_of(section) if section else ()):
        if phase.mix is not None:
            mix, shares = dict(phase.mix), {}
            if rows or not any(isinstance(share, str) for share in mix.values()):
                with told(f"pretrain.phases.{len(phases)}.mix: "):
                    shares = shares_of(mix, rows, phase.rows)
        read = {name: float(share * phase.rows) for name, share in shares.items()}
        sources = tuple(
            SourceRead(
                name,
                mix[name],
                float(100 * shares[name]) if name in shares else None,
                read[name] * length if name in read else None,
                read[name] / rows[name] if name in read and rows else None,
            )
            for name in mix
        )
        batch = job.section("pretrain").global_batch
        phases.append(
            PhaseRead(
                phase.start // batch + 1,
                (phase.start + phase.rows) // batch,
                phase.length * length,
                trained.rope_theta or job.model_config_resolved().rope_theta,
                phase.rows * length,
                sources,
            )
        )
    return phases


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

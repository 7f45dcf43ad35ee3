"""What pretraining reads in its phases: the mixes and the rows' lengths, and mistakes in them."""

from __future__ import annotations

from collections.abc import Iterator

from pion.config.model_config import ModelConfig
from pion.data.phased_order import Mix, MixPhase, passes_of
from pion.later_fields import closest, shown
from pipeline.job.data_section import Data
from pipeline.job.phase_sections import PretrainPhase
from pipeline.job.section import made, mistakes_of
from pipeline.job.train_sections import Pretrain, phases_of

# The rows of these sources follow each other as in their documents only by chance.
_CUT_ELSEWHERE = ("npy", "hub-npy")


def source_names(data: Data) -> list[str]:
    """Return how the sources of the text are called: by their names, else by their numbers."""
    return [source.name or str(number) for number, source in enumerate(data.sources)]


def mix_phases(data: Data, section: Pretrain | None) -> list[MixPhase]:
    """Return what pretraining reads in its phases; nothing if all phases read the same."""
    if section is None or not any(p.mix or p.seq_len or p.order for p in section.phases):
        return []
    mix: Mix | None = dict(zip(source_names(data), (s.weight for s in data.sources)))
    start, found = 0, []
    for phase, trained in zip(section.phases, phases_of(section)):
        end = trained.end(section.steps) * section.global_batch
        length = (trained.seq_len or data.seq_len) // data.seq_len
        found.append(MixPhase(start, end - start, phase.mix or mix, length, phase.order))
        start, mix = end, None
    return found


def mistakes_of_phases(data: Data, section: Pretrain, config: ModelConfig) -> Iterator[str]:
    """Yield what is wrong with what the phases of pretraining read. In `data`, `documents` is
    set."""
    sources, names = data.sources, source_names(data)
    mixes = [phase.mix is not None for phase in section.phases]
    for number, source in enumerate(sources):
        where = f"data.sources.{number}"
        yield from made(
            {
                f"{where}: phases name their sources: give it a name": (
                    any(mixes) and source.name is None
                ),
                f"{where}.name: {source.name} is the name of data.sources."
                f"{names.index(names[number])}, too": names.index(names[number]) < number,
                f"{where}.weight: the phases say how much is read; remove it": (
                    any(mixes) and "weight" in source.model_fields_set
                ),
            }
        )
    if any(mixes) and not mixes[0]:
        yield "pretrain.phases.0.mix: missing; a later phase has one"
    for number, phase in enumerate(section.phases):
        where = f"pretrain.phases.{number}"
        if phase.mix is not None and all(isinstance(share, str) for share in phase.mix.values()):
            yield (
                f"{where}.mix: no source has a share, and passes alone can't fill the phase "
                "exactly. Give one source a share"
            )
        for name, share in (phase.mix or {}).items():
            if name not in names:
                known = f"{closest(name, names)} ({', '.join(names)})"
                yield f"{where}.mix: no source is called {shown(name)}{known}"
            yield from (f"{where}.mix.{name}: {wrong}" for wrong in mistakes_of(passes_of, share))
        wrong_length = _mistakes_of_length(data, section, config, phase)
        yield from (f"{where}.{wrong}" for wrong in wrong_length)


def _mistakes_of_length(
    data: Data, section: Pretrain, config: ModelConfig, phase: PretrainPhase
) -> Iterator[str]:
    row = data.seq_len
    if phase.rope_theta is not None and config.positions == "learned":
        yield "rope_theta: the model has learned positions, so there are no angles"
    if phase.seq_len is None or phase.seq_len == row:
        return
    length, rest = divmod(phase.seq_len, row)
    if rest or not length:
        yield (
            f"seq_len: {phase.seq_len:,} must be a multiple of data.seq_len ({row:,}), such as "
            f"{row * max(2, length):,}"
        )
        return
    batch = section.global_batch
    if batch % length:
        near = [str(n) for n in (batch // length * length, -(-batch // length) * length) if n]
        yield (
            f"seq_len: pretrain.global_batch: {batch} rows of {row:,} are no whole number of rows "
            f"of {phase.seq_len:,}. Use {' or '.join(near)}"
        )
    yield from made(
        {
            f"seq_len: {phase.seq_len:,} exceeds the model's context {config.seq_len:,}. "
            f"Set model.seq_len to {phase.seq_len}": (phase.seq_len > config.seq_len),
            "seq_len: longer rows join rows that follow each other, so tokens must attend only "
            "within their document. Set data.documents to true": not data.documents,
        }
    )
    yield from (
        f"seq_len: rows of data.sources.{number} (kind {source.kind}) need not follow each other, "
        "so they can't be joined. Give text, or bin"
        for number, source in enumerate(data.sources)
        if source.kind in _CUT_ELSEWHERE
    )

"""`pion new` on preferences: propose a job that learns from pairs, or from answers with labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.new.base import NONE, LookedUp
from pipeline.new.draft import SPARE, Wanted, job_of
from pipeline.new.files import Group
from pipeline.new.job_text import flow, path_in_job, quoted, scalar, with_comments
from pipeline.new.look import FEW_BYTES
from pipeline.new.pairs_look import DOCS, PairsLook
from pipeline.new.price import cheapest, in_words, todays_market
from pipeline.new.proposal import (
    BASE_BYTES_PER_TOKEN,
    ENGLISH_BASES,
    LORA_FROM,
    OTHER_BASES,
    TEMPLATE_BYTES,
    FineTuning,
    fewer_passes,
)
from pipeline.rent.plan.preferences import count_preferences

# A row takes both answers of 99 of 100 pairs, with their prompts.
ROW_LENGTHS = (256, 512, 1024, 2048, 4096)
MOST_FIT = 0.99
# A step has about so many pairs, as in published recipes; fewer if that gives fewer steps.
PAIRS, LEAST_PAIRS, STEPS = 64, 8, 30
MOST_ROWS = 32
# With fewer pairs, a note says that they are few.
FEW_PAIRS = 300


@dataclass(frozen=True)
class PairsDraft:
    """A proposed job: its text, each choice with its value and reason, and what to know."""

    text: str
    lines: tuple[tuple[str, str, str], ...]
    notes: tuple[str, ...]


def start_of(look: PairsLook, asked: str | None, english: str) -> str:
    """Return the model to start from: the one that was asked for, or by the language.

    Raises BadInput if the person wants random weights.
    """
    if asked == NONE:
        raise BadInput(
            "--from none: preferences choose between answers that a model can give already, so "
            "they need a model that answers. Name one (--from MODEL), or leave --from out. "
            "Nothing was written."
        )
    if asked is not None:
        return asked
    return (ENGLISH_BASES if look.languages.most_common(1)[0][0] == english else OTHER_BASES)[0]


def tuning(look: PairsLook, base: LookedUp) -> FineTuning:
    """Return how the preferences are learned, by the rules of docs/own-data.md."""
    start = base.start(look.kept)
    per_token = start.bytes_per_token or BASE_BYTES_PER_TOKEN
    sides = 2 if look.paired else 1
    marks = sides * TEMPLATE_BYTES
    wanted = (look.length(MOST_FIT) + marks) / per_token * 1.1
    lengths = [n for n in ROW_LENGTHS if n <= sides * start.context] or [ROW_LENGTHS[0]]
    seq_len = min((n for n in lengths if n >= wanted), default=lengths[-1])
    rows = max(1, round((look.bytes + marks * look.items) / per_token / seq_len * 1.05))
    per_row = max(1.0, look.items / rows)
    batch = 1
    while batch < MOST_ROWS and 2 * batch * per_row <= 1.5 * PAIRS:
        batch *= 2
    while batch > 1 and rows / batch < STEPS and batch * per_row > LEAST_PAIRS:
        batch //= 2
    held_out = 0.02 if look.items >= 5000 else 0.05
    if look.items < 500:
        held_out = min(0.3, max(0.1, 5 / max(1, look.items)))
    by_lora = (start.parameters or 0) > LORA_FROM
    why = f"99 of 100 {look.what}s fit" if seq_len >= wanted else "the most that is proposed"
    why = f"{why}; longer ones are left out"
    return FineTuning(rows, seq_len, batch, 1.0, held_out, by_lora, None, why)


def draft_pairs(look: PairsLook, base: LookedUp, wanted: Wanted) -> PairsDraft:
    """Return a job for these preferences, and what it costs. Raises BadInput if it is not valid."""
    stage, price = tuning(look, base), "not known before the model is looked up"
    if base.base is not None:
        stage, price = _affordable(look, base, stage, wanted)
    pairs = look.items / max(1, stage.rows) * stage.global_batch
    reasons = _reasons(look, stage)
    lines = (
        ("start", base.source, "its size, vocabulary and context stay as they are"),
        ("loss", _loss(look), reasons["loss"]),
        ("rows", f"{stage.seq_len:,} tokens", reasons["seq_len"]),
        ("passes", f"{stage.epochs:g}", reasons["epochs"]),
        ("batch", f"{stage.global_batch}", f"rows in a step: about {pairs:,.0f} {look.what}s"),
        ("held out", f"{stage.held_out:.3g}", reasons["held_out"]),
        *([("LoRA", "yes", "the model is large; it stays as it is")] if stage.lora else []),
        ("price", "", price),
    )
    return PairsDraft(_text(look, base, stage, wanted), lines, tuple(_notes(look, base)))


def _affordable(
    look: PairsLook, base: LookedUp, stage: FineTuning, wanted: Wanted
) -> tuple[FineTuning, str]:
    """Return the stage, with as many passes as the money buys, and its price in words."""

    def with_rows(stage: FineTuning) -> Job:
        job = job_of(_text(look, base, stage, wanted), base, wanted.target)
        job.section("prefer").know_rows(stage.rows)
        return job

    job = with_rows(stage)
    if _is_little(look):
        count_preferences(job)  # refuses what `pion check` would
    market = todays_market(job)
    best = cheapest(with_rows(stage), market, None)
    if best is not None and best.dollars and best.dollars > wanted.dollars:
        share = SPARE * wanted.dollars / best.dollars
        stage = fewer_passes(stage, share)
        best = cheapest(with_rows(stage), market, None)
    return stage, in_words(best, market)


def _is_little(look: PairsLook) -> bool:
    return look.sample.whole and look.bytes <= FEW_BYTES


def _notes(look: PairsLook, base: LookedUp) -> Iterator[str]:
    if not _is_little(look):
        yield f"the template was not tried on the {look.what}s: `pion check` tries it"
    if look.items < FEW_PAIRS:
        yield f"{counted(look.items, look.what)} are few: the model may only learn their wording"
    if base.base is None:
        yield f"{base.source} can't be looked up now ({base.why}): `pion check` does"
    elif not base.has_template:
        yield (
            f"{base.source} has no chat template, so it may not answer yet. Teach it with `sft` "
            "first, in the same job or in another"
        )


def _loss(look: PairsLook) -> str:
    return "dpo-norm" if look.paired else "apo-zero"


def _reasons(look: PairsLook, stage: FineTuning) -> dict[str, str]:
    return {
        "loss": (
            "means over tokens, so longer answers have no advantage"
            if look.paired
            else "learns from single answers"
        ),
        "seq_len": stage.why_rows,
        "epochs": f"passes over about {stage.rows:,} rows: about {stage.steps:,} steps",
        "global_batch": "rows in a step",
        "held_out": "share of the prompts that is kept out of training, to measure on",
    }


def _text(look: PairsLook, base: LookedUp, stage: FineTuning, wanted: Wanted) -> str:
    return with_comments(_lines(look, base, stage, wanted))


def _lines(
    look: PairsLook, base: LookedUp, stage: FineTuning, wanted: Wanted
) -> Iterator[tuple[str, str]]:
    reasons, name = _reasons(look, stage), wanted.name
    yield f"# Written by: {wanted.command}", ""
    yield f"# {DOCS} says when this is worth it, and what to change. Change what you", ""
    yield "# like, then run `pion check`. docs/jobs.md has all other fields.", ""
    yield f"name: {scalar(name)}", ""
    yield f"model: {{from: {scalar(base.source)}}}", ""
    yield "prefer:", ""
    yield f"  loss: {_loss(look)}", reasons["loss"]
    for key in ("seq_len", "epochs", "global_batch", "held_out"):
        yield f"  {key}: {getattr(stage, key):g}", reasons[key]
    if stage.lora:
        yield "  lora: {}", "a model of this size is frozen; small additions are trained"
    yield "  sources:", ""
    yield f"  - {flow(_source(look.group, wanted.target))}", ""
    if prompt := _prompt(look):
        yield "evaluate:", ""
        yield f"  prompts: [{quoted(prompt)}]", ""
    yield "publish:", ""
    yield f"  to: {scalar(f'models/{name}')}", "a folder, or hf://user/name"


def _source(group: Group, target: Path) -> dict[str, object]:
    return {"kind": group.kind, "path": path_in_job(group.path, target.absolute().parent)}


def _prompt(look: PairsLook) -> str | None:
    """Return the first question, to be asked during training, if it is short."""
    if look.first is None:
        return None
    first = look.first.conversations[0]
    texts = [m["content"] for m in first.messages[: first.context] if m["role"] == "user"]
    short = [text.strip() for text in texts[-1:] if isinstance(text, str)]
    return next((text for text in short if 0 < len(text) <= 200 and text.isprintable()), None)

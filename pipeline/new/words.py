"""What was seen and what is proposed, in words: each choice with its reason, and notes."""

from __future__ import annotations

from collections.abc import Iterator

from pion.data.documents import languages
from pion.data.preference.summary import MANY_LONGER, MOST_SWAPPED
from pipeline.console.formats import amount, counted, short_amount, size
from pipeline.new import layouts
from pipeline.new.base import NONE, LookedUp
from pipeline.new.files import IN_WORDS
from pipeline.new.job_text import BUILT_IN, PREFERENCES, Proposal, lines_of
from pipeline.new.look import Look
from pipeline.new.rules import TOKENS_PER_PARAMETER, FromRandom

# Before a number that is an estimate.
ABOUT = "\N{ALMOST EQUAL TO} "
# With fewer tokens for each parameter, a note says so.
LEAST_RATIO = 5
# If less of the text is used, a note says so.
LEAST_USED = 0.5
# With fewer conversations, or preferences, a note says so.
FEW_CONVERSATIONS, FEW_PREFERENCES = 20, 300
# What the proposal says of pretraining, in this order and first.
FIRST = (
    "start",
    "size",
    "runs in",
    "vocabulary",
    "rows",
    "steps",
    "batch",
    "rate",
    "recipe",
    "held out",
)


def of_look(look: Look) -> Iterator[str]:
    """Yield what was seen, a line for each thing."""
    group, sample = look.reading.group, look.sample
    files = f"{IN_WORDS[group.kind]}: {counted(len(group.files), 'file')}, {size(group.bytes)}"
    if sample.whole:
        yield f"{files}, all of it looked at"
    else:
        yield (
            f"{files}. Looked at the first part of {counted(sample.files, 'file')}, "
            f"{size(sample.stored)}; numbers below with {ABOUT}are estimates from it"
        )
    layout = layouts.in_words(look.reading.layout)
    if look.stage == "prefer":
        pairs = "pairs of a chosen and a rejected answer"
        layout = f"{layout}, {pairs if look.paired else 'answers with a label'}"
    read = [f"read as: {layout}"] if group.kind != "text" and look.records else []
    read += look.remarks.in_words()
    if look.stage == "prefer":
        yield from (*read, *_counts(look))
    else:
        yield from (*_counts(look), *read)
        yield from (f"warning: {words}" for words in look.remarks.warnings())


def _counts(look: Look) -> Iterator[str]:
    if not look.records:
        return
    about = "" if look.sample.whole else ABOUT
    text = "text with the prompts" if look.stage == "prefer" else "text"
    yield (
        f"{about}{counted(look.all_records, look.what)}, {about}{size(look.all_text_bytes)} of "
        f"{text}; the middle one has {look.length(0.5):,} bytes, one in ten more than "
        f"{look.length(0.9):,}, the longest {max(look.lengths):,}"
    )
    if look.paired:
        yield f"the chosen answer is the longer one in {look.longer / look.records:.0%}"
    yield f"language, roughly: {languages.in_words(look.languages)}"
    for reason, count in look.left_out.items():
        yield f"left out: {count:,}, because {reason}"
    if look.twice and look.stage != "prefer":
        share = look.twice / look.records
        yield (
            f"twice: {amount(look.twice)} of {amount(look.records)} ({share:.1%}) are exact copies "
            "of another one. Copies are learned more often; remove them if that is not meant"
        )
    if look.blank:
        yield f"blank: {look.blank:,}, left out"


def of_proposal(p: Proposal) -> Iterator[str]:
    """Yield each choice with its value and its reason."""
    rows = [(line.name, line.value, line.said or line.why) for line in lines_of(p) if line.name]
    if p.pretraining is not None:
        rows.sort(key=lambda row: FIRST.index(row[0]) if row[0] in FIRST else len(FIRST))
    wide = max(len(value) for _, value, _ in rows)
    for name, value, reason in (*rows, ("price", "", p.price)):
        yield f"{name:<14} {value:<{wide}}  {reason}" if value else f"{name:<14} {reason}"


# ---------------------------------------------------------------- notes


def notes(p: Proposal) -> Iterator[str]:
    """Yield what the person should know."""
    count, stage = p.chats.count, p.pretraining
    if p.prefers is not None and p.base is not None:
        yield from _of_preferences(p.prefers, p.base)
        return
    if p.base is not None:
        yield from _of_base(p, p.base)
    elif BUILT_IN in p.sources["pretrain"]:
        yield (
            "without a model to start from, it is pretrained on the documentation that comes with "
            "Python first. That shows that all works; for a model worth talking to, name one: "
            "--from MODEL"
        )
    elif isinstance(stage, FromRandom) and stage.tokens < LEAST_RATIO * stage.parameters:
        yield (
            f"so many tokens suit a model of {short_amount(stage.tokens / TOKENS_PER_PARAMETER)} "
            f"parameters, and {stage.preset} has {short_amount(stage.parameters)}: it will learn "
            "words more than facts. A trained model learns more from them: --from MODEL"
        )
    if stage is not None and stage.epochs < LEAST_USED:
        yield (
            f"training uses {stage.epochs:.1%} of the text, but all of it is prepared "
            "first. Give a part of it, and preparing takes less time and room"
        )
    if 0 < count < FEW_CONVERSATIONS and p.sources["sft"]:
        yield f"{count} conversations are very few: expect a change of tone at most"


def _of_base(p: Proposal, base: LookedUp) -> Iterator[str]:
    if base.base is None:
        yield (
            f"{base.source} can't be looked up now ({base.why}), so the job was not checked, and "
            "the examples are shown without its chat template. `pion check` looks again"
        )
    elif p.tuning is not None and not base.has_template:
        yield (
            f"{base.source} has no chat template, so Pion's own is used: plain text with "
            "<|user|> and <|assistant|>"
        )
    if p.options.base is not None:
        return
    if p.sources["pretrain"]:
        yield (
            f"{short_amount(p.texts.bytes / 4)} tokens of text are too few to pretrain a "
            f"model on, so it starts from {base.source}. --from {NONE} starts from random weights"
        )
    else:
        yield (
            f"{p.looks[0].what}s need a model that can talk, so it starts from {base.source}. "
            "--from MODEL names another one"
        )


def _of_preferences(look: Look, base: LookedUp) -> Iterator[str]:
    """Yield what will probably disappoint, too."""
    if not (look.all_kept and look.reading.direct):
        yield f"the template was not tried on the {look.what}s: `pion check` tries it"
    if look.all_records < FEW_PREFERENCES:
        few = counted(look.all_records, look.what)
        yield f"{few} are few: the model may only learn their wording"
    if base.base is None:
        yield f"{base.source} can't be looked up now ({base.why}): `pion check` does"
    elif not base.has_template:
        yield (
            f"{base.source} has no chat template, so it may not answer yet. Teach it with `sft` "
            "first, in the same job or in another"
        )
    yield f"read when this is not worth it, before you pay for it: {PREFERENCES}"
    yield from look.remarks.warnings()
    if look.swapped > MOST_SWAPPED * look.records:
        yield (
            f"in {look.swapped:,} pairs, the chosen answer has the lower score. If chosen and "
            "rejected are swapped, swap them: `pion check` refuses such data"
        )
    if look.longer > MANY_LONGER * look.records:
        yield "the chosen answers are mostly the longer ones: the model will write longer"

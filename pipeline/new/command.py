"""`pion new`: look at data, propose a job for them, and write the job file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from pion.errors import BadInput
from pipeline.console.formats import beginning, counted, short_amount, show
from pipeline.console.masking import masked
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.job.stages import WORDS
from pipeline.new.base import NONE, LookedUp, look_up
from pipeline.new.data_set import LEARNED, DataSet, in_words, look_at
from pipeline.new.decide import decide
from pipeline.new.files import find_data
from pipeline.new.job_text import BUILT_IN, PREFERENCES, Line, Proposal, job_text, lines_of
from pipeline.new.options import NewOptions, name_of
from pipeline.new.proposal import default_start, propose
from pipeline.new.read import sample_of
from pipeline.new.rules import TOKENS_PER_PARAMETER, FromRandom
from pipeline.new.write_copy import write_copy, write_new
from pipeline.rehearsal.rehearse import StageData

# By the stage that learns from them, how the copy of data ends.
COPIES = {"pretrain": "texts", "sft": "chats", "prefer": "pairs", "reinforce": "prompts"}
# So many problems are named, and so many characters of an example are shown.
NAMED, SHOWN_CHARACTERS = 5, 600
# With fewer tokens for each parameter, a note says so.
LEAST_RATIO = 5
# If less of the text is used, a note says so.
LEAST_USED = 0.5
# With fewer records of the last stage, a note says so.
FEW = {
    "sft": (20, "conversations are very few: expect a change of tone at most"),
    "prefer": (300, "preferences are few: the model may only learn their wording"),
}
# What `pion schema` prints, in a file next to the job, and the line by which editors find the file.
SCHEMA = "pion-schema.json"
OF_EDITORS = f"# yaml-language-server: $schema={SCHEMA}"
# What the proposal says of pretraining, in this order and first.
FIRST = (
    *("start", "size", "runs in", "vocabulary", "rows", "steps", "batch", "rate", "recipe"),
    "held out",
)


def new_job(options: NewOptions) -> int:
    """Look at the data, print what was seen and proposed, and write the job file.

    Raises BadInput for data that can't be used, for a question that nobody is there to answer, and
    if a file to write exists. Then nothing was written.
    """
    target = options.target
    _refuse_names(options)
    data_sets, base = _data_sets(options)
    copied = [data for data in data_sets if data.copied]
    for number, data in enumerate(copied):
        data.path = target.with_name(f"{target.stem}-{COPIES[data.stage]}{number or ''}.jsonl")
    proposal, stages = propose(options, data_sets, base)
    lines = (*_examples(data_sets, stages), "\nproposed:", *_proposed(proposal), *_notes(proposal))
    for line in lines:
        show(line)
    for data in copied:
        if data.path.exists():
            raise BadInput(
                f"{data.path}, the copy that the job would read, exists, and Pion never overwrites "
                "a file. Move it, or choose another name: --out FILE. Nothing was written."
            )
    editors = [Line(OF_EDITORS)] if target.with_name(SCHEMA).exists() else []
    text = job_text([*editors, *lines_of(proposal)])
    if options.dry_run:
        show(f"\n--dry-run: {target} would be:\n")
        show(text.removesuffix("\n"))
        return 0
    for data in copied:
        with saying_if_slow(f"writing {data.path}"):
            records, bad = write_copy(data, data.path, skip=options.skip)
        left_out = f", {bad:,} left out" if bad else ""
        show(f"wrote {data.path}: {counted(records, 'record')}{left_out}")
    write_new(target, [text])
    show(f"wrote {target}. Next:\n  pion check {target}\n  pion plan {target}\n  pion run {target}")
    show(
        "or on a rented GPU (`pion help prepare-once` says what you need):\n"
        f"  pion launch {target} --on runpod-spot store=hf://USER/runs budget.dollars="
        f"{options.dollars:g} publish.to=hf://USER/{name_of(target)}"
    )
    return 0


def _refuse_names(options: NewOptions) -> None:
    """Raise BadInput for a name that can't be read, or not be written."""
    target = options.target
    if not options.dry_run and target.exists():
        raise BadInput(
            f"{target} exists, and Pion never overwrites a file. Choose another: --out FILE"
        )
    try:
        str(options.data.absolute()).encode()
    except UnicodeEncodeError:
        raise BadInput(
            f"{options.data}: this name is not UTF-8, so a job file can't hold it. Rename it. "
            "Nothing was written."
        ) from None
    if not target.absolute().parent.is_dir():
        raise BadInput(f"--out {target}: its folder does not exist. Nothing was written.")


def _data_sets(options: NewOptions) -> tuple[list[DataSet], LookedUp | None]:
    """Return what the data shows, and the model to start from; None: random weights."""
    base = None
    with saying_if_slow(f"looking at {options.data}"):
        groups, left_out = find_data(options.data)
        for note in left_out:
            show(note)
        samples = [sample_of(group) for group in groups]
    data_sets = decide(samples, options)
    if options.base not in (None, NONE):
        base = look_up(options.base, options.folder)
    own = options.base == NONE or (base is not None and not base.has_template)
    with saying_if_slow(f"looking at {options.data}"):
        for data in data_sets:
            look_at(data, own=own)
    for line in (line for data in data_sets for line in in_words(data)):
        show(line)
    _refuse_problems(data_sets, options)
    for data in data_sets:  # what comes later may be unreadable, too
        if options.skip and (data.problems or not data.sample.whole):
            data.copied = True
    if options.base is None and (default := default_start(data_sets)) is not None:
        base = look_up(default, options.folder)
    return data_sets, base


def _refuse_problems(data_sets: Sequence[DataSet], options: NewOptions) -> None:
    """Raise BadInput for what can't be read, unless it is to be skipped, for no data, and for
    preferences without a model."""
    problems = [masked(problem) for data in data_sets for problem in data.problems]
    useless = [data for data in data_sets if not data.contents]
    if problems:
        listed = "\n".join(f"  {problem}" for problem in problems[:NAMED])
        more = f"\n  … and {len(problems) - NAMED:,} more" if len(problems) > NAMED else ""
        if not options.skip:
            how = "Correct them"
            how += ", or write a copy without them: add --skip-unreadable" if not useless else ""
            raise BadInput(
                f"{counted(len(problems), 'record')} can't be read, and a run would stop there:\n"
                f"{listed}{more}\n{how}. Nothing was written."
            )
        show(f"left out, because they can't be read:\n{listed}{more}")
    stage = data_sets[0].stage
    if useless:
        path, learned = useless[0].group.path, LEARNED[useless[0].stage]
        raise BadInput(f"{path} has no {learned} that can be learned. Nothing was written.")
    if stage in ("prefer", "reinforce") and options.base == NONE:
        raise BadInput(
            f"--from none: {LEARNED[stage]} make more frequent what a model answers sometimes, so "
            "they need a model that answers. Name one (--from MODEL), or leave --from out. Nothing "
            "was written."
        )


# ---------------------------------------------------------------- what is said


def _examples(data_sets: Sequence[DataSet], stages: Mapping[str, StageData]) -> Iterator[str]:
    """Yield what the rehearsal says of each source, and its first record as the model sees it."""
    for data in data_sets:
        stage, first = stages.get(data.stage), data.contents[0]
        if stage is not None:
            for summary in stage.summaries.values():
                yield from summary.in_words()
            yield from (*stage.notes, *(f"warning: {warning}" for warning in stage.warnings))
        learned = ", with what is learned between ⟦ and ⟧" if data.stage != "reinforce" else ""
        lines = [json.dumps(first.record, ensure_ascii=False, default=str)]
        if stage is None:
            learned = " (without the template of the model)"
        elif data.stage == "pretrain":
            lines = [f"⟦{first.texts[0].strip()}⟧"]
        else:
            lines = list(stage.first)
        yield f"\nthe first {WORDS[data.stage].record}{learned}:\n  {first.where}"
        yield from (
            "    " + beginning(masked(line).rstrip(), SHOWN_CHARACTERS).replace("\n", "\n    ")
            for line in lines
        )


def _proposed(p: Proposal) -> Iterator[str]:
    """Yield each choice with its value and its reason."""
    rows = [(line.name, line.value, line.advice or line.why) for line in lines_of(p) if line.name]
    if p.pretraining is not None:
        rows.sort(key=lambda row: FIRST.index(row[0]) if row[0] in FIRST else len(FIRST))
    wide = max(len(value) for _, value, _ in rows)
    for name, value, reason in (*rows, ("price", "", p.price)):
        row = f"{name:<14} {value:<{wide}}  {reason}" if value else f"{name:<14} {reason}"
        yield f"  {row}"


def _notes(p: Proposal) -> Iterator[str]:
    """Yield what the person should know."""
    stage, count = p.pretraining, p.others.count
    few, why = FEW.get(p.last, (0, ""))
    used = 1.0 if stage is None else stage.epochs
    of_data = {
        f"training uses {used:.1%} of the text, but all of it is prepared first. Give a part of "
        "it, and preparing takes less time and room": used < LEAST_USED,
        f"{count} {why}": count < few,
        f"read when this is not worth it, before you pay for it: {PREFERENCES}": p.last == "prefer",
        "the job was tried on the head of the data: `pion check` tries more of it": (
            not all(data.sample.whole for data in p.data_sets)
        ),
    }
    yield from map("  note: {}".format, _of_start(p))
    yield from (f"  note: {note}" for note, holds in of_data.items() if holds)


def _of_start(p: Proposal) -> Iterator[str]:
    base, stage = p.base, p.pretraining
    if base is None:
        if BUILT_IN in p.sources["pretrain"]:
            yield (
                "without a model to start from, it is pretrained on the documentation that comes "
                "with Python first. That shows that all works; for a model worth talking to, name "
                "one: --from MODEL"
            )
        elif isinstance(stage, FromRandom) and stage.tokens < LEAST_RATIO * stage.parameters:
            yield (
                f"so many tokens suit a model of "
                f"{short_amount(stage.tokens / TOKENS_PER_PARAMETER)} parameters, and "
                f"{stage.preset} has {short_amount(stage.parameters)}: it will learn words more "
                "than facts. A trained model learns more from them: --from MODEL"
            )
        return
    if base.base is None:
        yield (
            f"{base.source} can't be looked up now, so the job was not tried. `pion check` tries "
            f"again. {base.why.removesuffix('.')}"
        )
    elif p.last != "pretrain" and not base.has_template:
        yield (
            f"{base.source} has no chat template, so Pion's own is used: plain text with "
            "<|user|> and <|assistant|>"
        )
        if p.last != "sft":
            yield "it may not answer yet. Teach it with `sft` first, in the same job or in another"
    if p.options.base is None:
        tokens = f"{short_amount(p.texts.bytes / 4)} tokens of text are too few to pretrain a model"
        why = f"{tokens} on" if p.texts.bytes else f"{LEARNED[p.last]} need a model that can talk"
        how = f"--from {NONE} starts from random weights"
        how = how if p.texts.bytes else "--from MODEL names another one"
        yield f"{why}, so it starts from {base.source}. {how}"

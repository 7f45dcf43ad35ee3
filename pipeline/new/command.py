"""`pion new`: look at data, propose a job for them, and write the job file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.formats import counted, show
from pipeline.console.masking import masked
from pipeline.console.print_and_ask import saying_if_slow
from pipeline.new.base import NONE, LookedUp, look_up
from pipeline.new.decide import decide
from pipeline.new.files import find_data
from pipeline.new.job_text import job_text, lines_of
from pipeline.new.look import NAMED, Look, look_at
from pipeline.new.options import NewOptions
from pipeline.new.proposal import default_start, propose
from pipeline.new.words import notes, of_look, of_proposal
from pipeline.new.write_copy import write_copy
from pipeline.rehearsal.rehearse import RECORDS

# By the stage that learns from them, how the copy of data ends.
COPIES = {"pretrain": "texts", "sft": "chats", "prefer": "pairs", "reinforce": "prompts"}


def new_job(options: NewOptions) -> int:
    """Look at the data, print what was found and proposed, and write the job file.

    Raises BadInput for data that can't be used, for a question that nobody is there to answer, and
    if a file to write exists. Then nothing was written.
    """
    _refuse_names(options)
    target = options.target
    looks, base = _looks(options)
    copied = [look for look in looks if not look.reading.direct]
    for number, look in enumerate(copied):
        look.path = target.with_name(f"{target.stem}-{COPIES[look.stage]}{number or ''}.jsonl")
    proposal, examples = propose(options, looks, base)
    for look, shown in zip(looks, examples, strict=True):
        first = look.what if look.stage == "prefer" else f"{look.what}s"
        learned = look.stage != "reinforce"
        show(f"\nthe first {first}{', with what is learned between ⟦ and ⟧' * learned}:")
        for example in shown:
            show("  " + masked(example).rstrip().replace("\n", "\n    "))
    show("\nproposed:")
    for words in (*of_proposal(proposal), *(f"note: {note}" for note in notes(proposal))):
        show(f"  {words}")
    for look in copied:
        if look.path.exists():
            raise BadInput(
                f"{look.path}, the copy that the job would read, exists, and Pion never overwrites "
                "a file. Move it, or choose another name: --out FILE. Nothing was written."
            )
    text = job_text(lines_of(proposal))
    if options.dry_run:
        show(f"\n--dry-run: {target} would be:\n")
        show(text.removesuffix("\n"))
        return 0
    for look in copied:
        with saying_if_slow(f"writing {look.path}"):
            records, bad = write_copy(look.reading, look.path, skip=options.skip, say=show)
        left_out = f", {bad:,} left out" if bad else ""
        show(f"wrote {look.path}: {counted(records, 'record')}{left_out}")
    _write(target, text)
    show(f"wrote {target}. Next:\n  pion check {target}\n  pion plan {target}\n  pion run {target}")
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


def _looks(options: NewOptions) -> tuple[list[Look], LookedUp | None]:
    """Return what the data shows, and the model to start from; None: random weights."""
    with saying_if_slow(f"looking for the files of {options.data}"):
        found = find_data(options.data)
    for words in found.left_out:
        show(words)
    readings = decide(found, options.wishes)
    folder = options.target.absolute().parent
    base = None
    if options.base not in (None, NONE):
        base = look_up(options.base, folder)
    own = options.base == NONE or (base is not None and not base.has_template)
    with saying_if_slow(f"looking at {options.data}"):
        looks = [look_at(replace(reading, own_template=own)) for reading in readings]
    for words in (words for look in looks for words in of_look(look)):
        show(words)
    _refuse_problems(looks, options)
    if options.base is None:
        default = default_start(looks)
        base = None if default is None else look_up(default, folder)
    return looks, base


def _refuse_problems(looks: Sequence[Look], options: NewOptions) -> None:
    """Raise BadInput for what can't be read, unless it is to be skipped, for no data, and for
    preferences without a model."""
    bad = sum(one.bad for one in looks)
    problems = [masked(problem) for one in looks for problem in one.problems][:NAMED]
    prefers = looks[0].stage == "prefer"
    if bad:
        listed = "\n".join(f"  {problem}" for problem in problems)
        more = f"\n  … and {bad - len(problems):,} more" if bad > len(problems) else ""
        if prefers or not options.skip:
            rest = "Correct or remove them" if prefers else "Correct them"
            if not prefers and any(one.records for one in looks):
                rest += ", or write a copy without them: add --skip-unreadable"
            raise BadInput(
                f"{counted(bad, 'record')} can't be read, and a run would stop there:\n{listed}"
                f"{more}\n{rest}. Nothing was written."
            )
        show(f"left out, because they can't be read:\n{listed}{more}")
    if not any(one.records for one in looks):
        what = "preferences that can be learned" if prefers else "text that can be learned"
        raise BadInput(f"{looks[0].reading.group.path} has no {what}. Nothing was written.")
    if (prefers or looks[0].stage == "reinforce") and options.base == NONE:
        raise BadInput(
            f"--from none: {RECORDS[looks[0].stage]} make more frequent what a model answers "
            "sometimes, so they need a model that answers. Name one (--from MODEL), or leave "
            "--from out. Nothing was written."
        )


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise BadInput(f"{target} exists, and Pion never overwrites a file.") from None
    except OSError as error:
        raise BadInput(f"{target} could not be written: {error.strerror}") from None

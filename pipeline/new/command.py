"""`pion new`: look at data, propose a job for them, and write the job file."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pion.data.documents.languages import ENGLISH
from pion.errors import BadInput
from pipeline.console.formats import counted, show
from pipeline.console.masking import masked
from pipeline.console.out import saying_if_slow
from pipeline.new import layouts, look, proposal
from pipeline.new.base import NONE, LookedUp, look_up
from pipeline.new.chats import parse_roles
from pipeline.new.decide import Wishes, decide
from pipeline.new.draft import Wanted, amount_of, draft_of
from pipeline.new.draft_in_words import in_lines, notes
from pipeline.new.files import Found, find_data
from pipeline.new.look import Look, look_at
from pipeline.new.pairs_command import PairsOptions, new_pairs_job
from pipeline.new.pairs_look import has_preferences
from pipeline.new.write_copy import write_copy


@dataclass(frozen=True)
class Options:
    """The command line, read."""

    data: Path
    dollars: float
    base: str | None
    out: Path | None
    dry_run: bool
    wishes: Wishes
    skip: bool
    command: str

    @classmethod
    def of(cls, args: argparse.Namespace) -> Options:
        """Return what the arguments say. Raises BadInput for a number that is no price."""
        if not (math.isfinite(args.dollars) and 0 < args.dollars <= 1e6):
            raise BadInput(f"--dollars {args.dollars:g} must be above 0, and at most 1,000,000")
        columns = layouts.Asked(
            use=None if args.use == "both" else args.use,
            text=args.text_column,
            turns=args.turns_column,
            question=args.question_column,
            answer=args.answer_column,
        )
        return cls(
            Path(args.data),
            args.dollars,
            args.base,
            None if args.out is None else Path(args.out),
            args.dry_run,
            Wishes(columns, parse_roles(args.roles), both=args.use == "both"),
            args.skip_unreadable,
            _command(args),
        )

    @property
    def target(self) -> Path:
        """The job file to write."""
        return self.out or Path(f"{name_of(self.data)}.yaml")


def _command(args: argparse.Namespace) -> str:
    """Return the command line, for the comment in the job file."""
    names = {"base": "from"}
    words = ["pion", "new", args.data]
    for key, value in sorted(vars(args).items()):
        if key in ("data", "command", "out", "dry_run") or value in (None, False):
            continue
        option = f"--{names.get(key, key).replace('_', '-')}"
        given = f"{value:g}" if isinstance(value, float) else value
        words += [option] if value is True else [option, given]
    # It becomes a comment, which a line break of any kind would end.
    return "".join(c if c.isprintable() else "?" for c in masked(shlex.join(words)))


def name_of(data: Path) -> str:
    """Return a name for the run, from the name of a file or a folder."""
    name = data.resolve().name
    if not data.is_dir():
        name = Path(name.removesuffix(".gz").removesuffix(".zst")).stem
    name = re.sub(r"[^A-Za-z0-9_.+=@-]+", "-", name)
    return re.sub(r"^[^A-Za-z0-9_]+", "", name)[:60].rstrip("-.") or "mine"


def new_job(options: Options) -> int:
    """Look at the data, print what was found and proposed, and write the job file.

    Raises BadInput for data that can't be used, for a question that nobody is there to answer, and
    if a file to write exists. Then nothing was written.
    """
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
    with saying_if_slow(f"looking for the files of {options.data}"):
        found = find_data(options.data)
        preferences = not options.wishes.columns.says_anything and has_preferences(found)
    wanted = Wanted(name_of(target), target, options.command, options.dollars)
    if preferences:
        return new_pairs_job(found, PairsOptions(wanted, options.base, options.dry_run, _write))
    return _new_job(options, wanted, found)


def _new_job(options: Options, wanted: Wanted, found: Found) -> int:
    """Do what `new_job` does for text and conversations."""
    target = options.target
    looks, base = _looks(options, target, found)
    for one in looks:
        _show_look(one)
    _refuse_problems(looks, options)
    draft = draft_of(wanted, looks, base)
    for one, examples in zip(looks, draft.examples, strict=True):
        _show_examples(one, examples)
    show("\nproposed:")
    for words in (*in_lines(draft), *(f"note: {note}" for note in notes(draft, options.base))):
        show(f"  {words}")
    for _, copy in draft.copies:
        if copy.exists():
            raise BadInput(
                f"{copy}, the copy that the job would read, exists, and Pion never overwrites a "
                "file. Move it, or choose another name: --out FILE. Nothing was written."
            )
    if options.dry_run:
        show(f"\n--dry-run: {target} would be:\n")
        show(draft.text.removesuffix("\n"))
        return 0
    for reading, copy in draft.copies:
        with saying_if_slow(f"writing {copy}"):
            copied = write_copy(reading, copy, skip=options.skip, say=show)
        left_out = f", {copied.left_out:,} left out" if copied.left_out else ""
        show(f"wrote {copy}: {counted(copied.records, 'record')}{left_out}")
    _write(target, draft.text)
    show(f"wrote {target}. Next:\n  pion check {target}\n  pion plan {target}\n  pion run {target}")
    return 0


def _write(target: Path, text: str) -> None:
    try:
        with target.open("x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError:
        raise BadInput(f"{target} exists, and Pion never overwrites a file.") from None
    except OSError as error:
        raise BadInput(f"{target} could not be written: {error.strerror}") from None


# ---------------------------------------------------------------- looking


def _looks(options: Options, target: Path, found: Found) -> tuple[list[Look], LookedUp | None]:
    """Return what the data shows, and the model to start from; None: random weights."""
    for words in found.left_out:
        show(words)
    readings = decide(found, options.wishes)
    folder = target.absolute().parent
    named = options.base if options.base not in (None, NONE) else None
    base = None if named is None else _look_up(named, folder)
    own = options.base == NONE or (base is not None and not base.has_template)
    readings = [replace(reading, own_template=own) for reading in readings]
    with saying_if_slow(f"looking at {options.data}"):
        looks = [look_at(reading) for reading in readings]
    if options.base is None:
        source = proposal.default_base(amount_of(looks), english=_is_english(looks))
        base = None if source is None else _look_up(source, folder)
    return looks, base


def _look_up(source: str, folder: Path) -> LookedUp:
    with saying_if_slow(f"looking up {source}"):
        return look_up(source, folder)


def _is_english(looks: Sequence[Look]) -> bool:
    most = [one.languages.most_common(1)[0][0] for one in looks if one.languages]
    return all(language == ENGLISH for language in most)


def _show_look(one: Look) -> None:
    for words in look.in_words(one):
        show(words)
    if one.reading.group.kind != "text":
        show(f"read as: {layouts.in_words(one.reading.layout)}")
    for words in one.remarks.in_words():
        show(words)
    for words in one.remarks.warnings():
        show(f"warning: {words}")


def _show_examples(one: Look, examples: Sequence[str]) -> None:
    what = "conversations" if one.is_chat else "documents"
    show(f"\nthe first {what}, with what is learned between ⟦ and ⟧:")
    for example in examples:
        show("  " + masked(example).rstrip().replace("\n", "\n    "))


def _refuse_problems(looks: Sequence[Look], options: Options) -> None:
    """Raise BadInput for what can't be read, unless it is to be skipped, and for no data."""
    bad = sum(one.bad for one in looks)
    problems = [masked(problem) for one in looks for problem in one.problems][: look.NAMED]
    if bad:
        listed = "\n".join(f"  {problem}" for problem in problems)
        more = f"\n  … and {bad - len(problems):,} more" if bad > len(problems) else ""
        if not options.skip:
            rest = "Correct them"
            if any(one.records for one in looks):
                rest += ", or write a copy without them: add --skip-unreadable"
            raise BadInput(
                f"{counted(bad, 'record')} can't be read, and a run would stop there:\n{listed}"
                f"{more}\n{rest}. Nothing was written."
            )
        show(f"left out, because they can't be read:\n{listed}{more}")
    if not any(one.records for one in looks):
        raise BadInput(f"{options.data} has no text that can be learned. Nothing was written.")

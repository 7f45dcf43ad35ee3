"""`pion new` on preferences: look at them, print what was found and proposed, and write the job."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pion.data.documents.languages import ENGLISH
from pion.errors import BadInput
from pipeline.console.formats import counted, show
from pipeline.console.masking import masked
from pipeline.console.out import saying_if_slow
from pipeline.new import pairs_look
from pipeline.new.base import look_up
from pipeline.new.draft import Wanted
from pipeline.new.files import IN_WORDS, Found, Group
from pipeline.new.pairs import draft_pairs, start_of
from pipeline.new.pairs_look import PairsLook, look_at_pairs

# Of the first preference, so many characters of each text are shown.
SHOWN = 400


@dataclass(frozen=True)
class PairsOptions:
    """What the person asks for. `base` is the model to start from, if one is named."""

    wanted: Wanted
    base: str | None
    dry_run: bool
    write: Callable[[Path, str], None]


def new_pairs_job(found: Found, options: PairsOptions) -> int:
    """Look at preferences, print what was found and proposed, and write the job file.

    Raises BadInput for preferences that can't be used. Then nothing was written.
    """
    target = options.wanted.target
    group = _only_group(found)
    with saying_if_slow(f"looking at {group.path}"):
        look = look_at_pairs(group)
    for words in pairs_look.in_words(look):
        show(words)
    _refuse_problems(look)
    source = start_of(look, options.base, ENGLISH)
    with saying_if_slow(f"looking up {source}"):
        base = look_up(source, target.absolute().parent)
    draft = draft_pairs(look, base, options.wanted)
    show(f"\nthe first {look.what}, with what is learned between ⟦ and ⟧:")
    for text in pairs_look.shown(look):
        short = text if len(text) <= SHOWN else f"{text[:SHOWN]} …"
        show("  " + masked(short).rstrip().replace("\n", "\n    "))
    show("\nproposed:")
    wide = max(len(value) for _, value, _ in draft.lines)
    for name, value, reason in draft.lines:
        show(f"  {name:<14} {value:<{wide}}  {reason}" if value else f"  {name:<14} {reason}")
    for note in (*draft.notes, *pairs_look.warnings(look)):
        show(f"  note: {note}")
    if options.dry_run:
        show(f"\n--dry-run: {target} would be:\n")
        show(draft.text.removesuffix("\n"))
        return 0
    options.write(target, draft.text)
    show(f"wrote {target}. Next:\n  pion check {target}\n  pion plan {target}\n  pion run {target}")
    return 0


def _only_group(found: Found) -> Group:
    """Return the group of files. Raises BadInput for several, and for those no job can read."""
    for words in found.left_out:
        show(words)
    kinds = [IN_WORDS[group.kind] for group in found.groups]
    if len(kinds) > 1:
        raise BadInput(
            f"the preferences are in files of several kinds ({', '.join(kinds)}). Give one of the "
            "files, or move them into folders of their own. Nothing was written."
        )
    (group,) = found.groups
    if group.kind not in ("jsonl", "parquet"):
        raise BadInput(
            f"{group.path}: a job reads preferences as JSON Lines or parquet, and this is "
            f"{kinds[0]}. Convert it first: python -m pipeline.new.to_jsonl "
            f"{shlex.quote(str(group.path))} > pairs.jsonl. Nothing was written."
        )
    return group


def _refuse_problems(look: PairsLook) -> None:
    """Raise BadInput for records that a run would refuse, and if nothing is left."""
    problems: Sequence[str] = [masked(problem) for problem in look.problems]
    if look.bad:
        listed = "\n".join(f"  {problem}" for problem in problems)
        more = f"\n  … and {look.bad - len(problems):,} more" if look.bad > len(problems) else ""
        raise BadInput(
            f"{counted(look.bad, 'record')} can't be read, and a run would stop there:\n{listed}"
            f"{more}\nCorrect or remove them. Nothing was written."
        )
    if not look.lengths:
        raise BadInput(
            f"{look.group.path} has no preferences that can be learned. Nothing was written."
        )

"""Look at preferences: how many, how long, what would be left out, and what would be refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from pion.data.chat.messages import Conversation, with_texts
from pion.data.documents import languages
from pion.data.documents.file_to_documents import whole_characters
from pion.data.preference.layouts import Pair, Preference, parse_preference
from pion.data.preference.rendering import reason_without_ids
from pion.data.preference.summary import MANY_LONGER, MOST_SWAPPED
from pion.data.records.layouts import kind_of
from pion.data.tokens.token_bytes import ReplacedCharacters
from pion.errors import BadInput
from pipeline.console.formats import counted, size
from pipeline.data.remarks import Remarks
from pipeline.new import sample as bounds
from pipeline.new.files import Found, Group
from pipeline.new.look import ABOUT, GUESSED, KEPT_CHARACTERS, NAMED, looked_at, not_exceeded
from pipeline.new.sample import Sample, first_records, sample_of

DOCS = "docs/fine-tune.md#preferences"


@dataclass
class PairsLook:
    """What was seen of a group of files. Counts are of the sample.

    Attributes:
        paired: whether these are pairs, and not single answers with labels.
        lengths: bytes of all texts of each pair, prompts included, or of each single answer.
        longer: pairs whose chosen answer is the longer one.
    """

    group: Group
    sample: Sample
    paired: bool = True
    lengths: list[int] = field(default_factory=list)
    longer: int = 0
    swapped: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    bad: int = 0
    problems: list[str] = field(default_factory=list)
    first: Preference | None = None
    kept: list[str] = field(default_factory=list)
    remarks: Remarks = field(default_factory=lambda: Remarks(ReplacedCharacters(None)))
    _characters: int = 0

    @property
    def items(self) -> int:
        """About how many pairs, or single answers, can be used."""
        return round(len(self.lengths) * self.sample.factor)

    @property
    def bytes(self) -> int:
        """About how many bytes of text these have."""
        return round(sum(self.lengths) * self.sample.factor)

    def length(self, share: float) -> int:
        """Return the bytes that this share of the pairs does not exceed."""
        return not_exceeded(self.lengths, share)

    @property
    def what(self) -> str:
        """Return what one of them is called."""
        return "pair" if self.paired else "answer"


def has_preferences(found: Found) -> bool:
    """Return whether data are preferences, by the first records.

    Raises BadInput if only some of the files are.
    """
    kinds = {
        file: any(kind_of(item.record or {}) in ("pair", "label") for item in items)
        for group in found.groups
        for file, items in (first_records(group) if group.kind != "text" else ())
        if items
    }
    if not any(kinds.values()):
        return False
    texts = [group.files[0] for group in found.groups if group.kind == "text"]
    if others := texts + [file for file, is_one in kinds.items() if not is_one]:
        ours = next(file for file, is_one in kinds.items() if is_one)
        raise BadInput(
            f"preferences and other data are mixed: {ours} has preferences, and {others[0]} has "
            "none. Give one of the files, or move them into folders of their own. Nothing was "
            "written."
        )
    return True


def look_at_pairs(group: Group, limit: int | None = None) -> PairsLook:
    """Return what a sample of about `limit` bytes shows. Nothing that is wrong ends the look."""
    sample = sample_of(group, bounds.LOOK_BYTES if limit is None else limit)
    look = PairsLook(group, sample)
    for item in sample.items:
        problem = item.problem
        if item.record is not None:
            try:
                record = with_texts(item.record, whole_characters)
                problem = _add(look, parse_preference(record, item.where))
            except BadInput as error:
                problem = str(error)
        if problem is not None:
            look.bad += 1
            look.problems = [*look.problems, problem][:NAMED]
    return look


def _add(look: PairsLook, found: Preference) -> str | None:
    """Note one preference; return why a run would refuse it, or None."""
    paired = isinstance(found, Pair)
    if look.first is not None and paired != look.paired:
        return (
            f"{found.conversations[0].where}: pairs and single answers are mixed. A job learns "
            "from one of the two: use two files"
        )
    look.paired = paired
    texts = [*map(_text, found.conversations)]
    look.remarks.note(found.conversations[0].seen, texts, found.conversations[0].where)
    look.first = look.first or found
    if reason := reason_without_ids(found):
        look.left_out[reason] += 1
        return None
    answers = [_answer(side) for side in found.conversations]
    look.lengths.append(sum(len(text.encode()) for text in texts))
    if isinstance(found, Pair):
        look.longer += len(answers[0]) > len(answers[1])
        look.swapped += found.swapped
    if sum(look.languages.values()) < GUESSED:
        look.languages[languages.language_of(texts[0])] += 1
    if look._characters <= KEPT_CHARACTERS:
        look.kept.append(texts[0][:KEPT_CHARACTERS])
        look._characters += len(texts[0])
    return None


def _text(side: Conversation) -> str:
    return "\n".join(str(message["content"] or "") for message in side.messages)


def _answer(side: Conversation) -> str:
    return "\n".join(str(m["content"] or "") for m in side.messages[side.context :])


def in_words(look: PairsLook) -> Iterator[str]:
    """Yield what was seen, a line for each thing."""
    about = "" if look.sample.whole else ABOUT
    yield looked_at(look.group, look.sample)
    read_as = "pairs of a chosen and a rejected answer" if look.paired else "answers with a label"
    yield f"read as: preferences, {read_as}"
    yield from look.remarks.in_words()
    if not look.lengths:
        return
    yield (
        f"{about}{counted(look.items, look.what)}, {about}{size(look.bytes)} of text with the "
        f"prompts; the middle one has {look.length(0.5):,} bytes, one in ten more than "
        f"{look.length(0.9):,}, the longest {max(look.lengths):,}"
    )
    if look.paired:
        yield f"the chosen answer is the longer one in {look.longer / len(look.lengths):.0%}"
    yield f"language, roughly: {languages.in_words(look.languages)}"
    for reason, count in look.left_out.items():
        yield f"left out: {count:,}, because {reason}"


def warnings(look: PairsLook) -> list[str]:
    """Return what will probably disappoint, a sentence each."""
    found = [
        f"read when this is not worth it, before you pay for it: {DOCS}",
        *look.remarks.warnings(),
    ]
    if look.swapped > MOST_SWAPPED * len(look.lengths):
        found.append(
            f"in {look.swapped:,} pairs, the chosen answer has the lower score. If chosen and "
            "rejected are swapped, swap them: `pion check` refuses such data"
        )
    if look.paired and look.longer > MANY_LONGER * len(look.lengths):
        found.append("the chosen answers are mostly the longer ones: the model will write longer")
    return found


def shown(look: PairsLook) -> Sequence[str]:
    """Return the first preference in plain words, a line for the prompt and one for each answer."""
    if look.first is None:
        return []
    first = look.first.conversations[0]
    names: tuple[str, ...] = ("chosen", "rejected")
    if not look.paired:
        names = ("desired" if look.first.preferred[0] else "undesired",)
    prompt = "\n".join(
        f"{m['role']}: {m['content'] or ''}" for m in first.messages[: first.context]
    )
    answers = zip(names, map(_answer, look.first.conversations))
    return [first.where, prompt, *(f"{name}: ⟦{answer}⟧" for name, answer in answers)]

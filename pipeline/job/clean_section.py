"""The job file: which documents are left out before training (`data.clean`).

A changed default or a new field moves digests: see train_sections.py.
"""

from __future__ import annotations

from pydantic import field_validator, model_validator

from pion.data.documents.languages import LANGUAGES
from pion.later_fields import closest, shown
from pipeline.job.section import Section, identity, made, refuse

# In data.clean.decontaminate, this word stands for the sets that the section `evaluate` names.
OF_EVALUATE = "evaluate"
# No document has more words.
WORDS = 10**9


class Clean(Section):
    """Which documents of `data.sources` are left out."""

    exact: bool = identity(
        True,
        "leave out a document with the same text as an earlier document of any source. Case and "
        "the amount of white space don't count. Without the section `clean`, which may be `{}`, "
        "no document is left out (docs/clean-data.md)",
    )
    near: float | None = identity(
        0.6,
        "leave out a document whose similarity to an earlier document of any source is at least "
        "this number. Similarity compares pairs of neighbouring words: it is the number of pairs "
        "that both documents have, divided by the number of pairs that at least one of them has. "
        "1: both have the same pairs. Documents of fewer than 8 words are not compared; null: keep "
        "near-copies",
        ge=0.3,
        le=1,
    )
    min_words: int | None = identity(
        None, "leave out a document of fewer words; unset: no limit", gt=0, most=WORDS
    )
    max_words: int | None = identity(
        None, "leave out a document of more words; unset: no limit", gt=0, most=WORDS
    )
    max_repetition: float | None = identity(
        None,
        "leave out a document if more than this share of its runs of 13 words occur earlier in the "
        "same document; unset: no limit",
        ge=0,
        lt=1,
    )
    languages: list[str] = identity(
        [],
        "keep only documents in these languages, such as English. They are guessed from letters "
        "and frequent words, so short documents and code are often of no language; empty: keep all",
    )
    decontaminate: list[str] = identity(
        [],
        "leave out a document that holds at least half of the 13-word runs of an item (question "
        "and right answer) of an evaluation set. Give paths of question packs and of CORE bundles "
        "(a folder or a .zip), or `evaluate` for all sets that the section `evaluate` names",
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: list[str]) -> list[str]:
        return refuse(
            languages,
            [
                f"{shown(name)} is none of {', '.join(LANGUAGES)}{closest(name, LANGUAGES)}"
                for name in languages
                if name not in LANGUAGES
            ],
        )

    @model_validator(mode="after")
    def _makes_sense(self) -> Clean:
        least, most = self.min_words, self.max_words
        rules = (self.exact, self.near, least, most, self.max_repetition is not None)
        mistakes = {
            f"max_words: {most} is less than min_words, {least}": (
                least is not None and most is not None and most < least
            ),
            "exact: no rule is left, so nothing would be cleaned. Remove `clean`, or name a rule": (
                not any((*rules, self.languages, self.decontaminate))
            ),
            "decontaminate: a set is named twice": (
                len(set(self.decontaminate)) < len(self.decontaminate)
            ),
        }
        return refuse(self, made(mistakes))

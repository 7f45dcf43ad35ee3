"""What the parts of a model bring to the program: options of loading a model, counts and measures.

The settings of a part (pion/config/part_fields.py) say everything else.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.models import drafts

if TYPE_CHECKING:
    from pion.generation.answer import Answer, Drawn
    from pion.model.decoder import Decoder
    from pipeline.models.find import FoundModel


class ProgramPart(Protocol):
    """What the program asks of a part: a module has these functions."""

    def add_options(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the part's options of loading a model to generate text."""

    def load(self, model: Decoder, found: FoundModel, asked: argparse.Namespace, /) -> Decoder:
        """Return a model that was loaded, as the options ask, if there are any of them."""

    def timings(
        self, answers: Sequence[Answer], drawn: Sequence[Sequence[Drawn]], /
    ) -> dict[str, int]:
        """Return what the timings of answers have of the part. `drawn` are each answer's tokens."""

    def usage(self, timings: Mapping[str, Any], /) -> dict[str, Any]:
        """Return what OpenAI's usage has of the part, from the timings."""

    def measured(
        self,
        model: Decoder,
        beginnings: Sequence[Sequence[int]],
        vocab_size: int,
        on_pass: Callable[[], None],
        /,
    ) -> dict[str, Any]:
        """Return the entries of the part's result (`RESULTS`), measured after `beginnings` of
        held-out texts. Ids below `vocab_size` can be drawn."""


# By the names of their fields in ModelConfig.
PROGRAM_PARTS: dict[str, ProgramPart] = {"draft": drafts}

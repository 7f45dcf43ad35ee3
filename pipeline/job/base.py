"""The model that a run starts from (`model.from`), as the job and its digests see it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pion.config import ModelConfig


@dataclass(frozen=True)
class Base:
    """A model that somebody else, or another run, has trained.

    What it is follows from the content of its files, never from a name, a branch or a path.

    Attributes:
        source: what the job calls it.
        hash: sha256 of the names and contents of all files that results depend on.
        tokenizer: the same of the files that decide token ids. Prepared data depends on it.
        config: the settings of its decoder, as `ModelConfig.to_dict`.
        commit: the commit of a Hub repository; None for any other source.
        template: sha256 of its chat template; None if it has none.
        date: the day that its chat template writes as today's, where the template asks for one. It
            is the day on which the run found the model, and stays the same for the run.
    """

    source: str
    hash: str
    tokenizer: str
    config: Mapping[str, Any]
    commit: str | None = None
    template: str | None = None
    date: str | None = None

    @property
    def model_config(self) -> ModelConfig:
        """The settings of its decoder. Raises BadInput if this version does not have them."""
        return ModelConfig.from_dict(dict(self.config))

    def __str__(self) -> str:
        at = f" at commit {self.commit[:12]}" if self.commit else ""
        return f"{self.source}{at} (content {self.hash[:12]})"

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the base, as plain JSON."""
        return dataclasses.asdict(self)

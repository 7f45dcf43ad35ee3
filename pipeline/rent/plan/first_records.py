"""Look at the first records of data sets on the Hub alone, before anything is rented."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.data.sources import SAMPLED
from pipeline.job import HubDataset, Source


def keep_first_records(sources: Iterable[Source]) -> bool:
    """Let sources on the Hub give at most SAMPLED records; return whether these are all."""
    whole = True
    for source in sources:
        if isinstance(source, HubDataset):
            most = source.max_documents
            whole = whole and most is not None and most <= SAMPLED
            source.max_documents = SAMPLED if most is None else min(most, SAMPLED)
    return whole

"""Continue several texts together: the weights, whose reading takes the time, are read once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from pion.errors import BadInput
from pion.generation.generate import PROMPT_PIECE, Settings, Text, next_logits, read_prompts
from pion.model.attention.cache import BatchCache, KVCache
from pion.model.decoder import Decoder

ROWS = 16


def generate_batch(
    model: Decoder, prompts: Sequence[Sequence[int]], *, rows: int = ROWS, **settings: Any
) -> Iterator[tuple[int, int | None]]:
    """Continue each of `prompts`: yield (the prompt's number from 0, its next new id).

    When a text has ended, None is its next id. At most `rows` texts are continued at once; when one
    ends, the next prompt takes its row. `settings` are the keywords of `pion.generate`; with a
    `seed`, each text is drawn as if it were alone. In fp32, a text is what `pion.generate` yields,
    except where two ids are equally likely up to rounding.

    Raises what `pion.generate` raises, before the first id.
    """
    if rows < 1:
        raise BadInput(f"rows is {rows}; it must be at least 1")
    texts = [Text(model, ids, Settings(**settings)) for ids in prompts]
    return _continue(model, texts, min(rows, len(texts)))


def _continue(model: Decoder, texts: list[Text], rows: int) -> Iterator[tuple[int, int | None]]:
    cache = BatchCache(model.config, rows, max((text.room for text in texts), default=0))
    waiting = deque(enumerate(texts))
    in_rows: list[tuple[int, Text]] = []
    while waiting or in_rows:
        while waiting and len(in_rows) < rows:
            group = _next_group(waiting, rows - len(in_rows))
            prompts = [list(text.ids) for _, text in group]
            read = KVCache(model.config, max_tokens=max(len(ids) for ids in prompts))
            logits = read_prompts(model, prompts, read)
            for row, (number, text) in enumerate(group):
                yield from _drawn(number, text, logits[row])
                if not text.ended:
                    cache.join(read, row, len(prompts[row]))
                    in_rows.append((number, text))
        if in_rows:
            logits = next_logits(model, [[text.ids[-1]] for _, text in in_rows], cache)
            for row, (number, text) in enumerate(in_rows):
                yield from _drawn(number, text, logits[row])
            # The last text takes the row of a text that has ended, so later rows leave first.
            for row in reversed(range(len(in_rows))):
                if in_rows[row][1].ended:
                    cache.leave(row)
                    in_rows[row] = in_rows[-1]
                    in_rows.pop()


def _next_group(waiting: deque[tuple[int, Text]], most: int) -> list[tuple[int, Text]]:
    """Take the texts from `waiting` that are read together: at least one, and at most `most`."""
    group = [waiting.popleft()]
    longest = len(group[0][1].ids)
    while waiting and len(group) < most:
        longest = max(longest, len(waiting[0][1].ids))
        if longest * (len(group) + 1) > PROMPT_PIECE:
            break
        group.append(waiting.popleft())
    return group


def _drawn(number: int, text: Text, logits: Tensor) -> Iterator[tuple[int, int | None]]:
    token = None if text.ended else text.draw(logits)
    if token is not None:
        yield number, token
    if text.ended:
        yield number, None

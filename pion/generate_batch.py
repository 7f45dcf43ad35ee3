"""Continue several texts together: the weights, whose reading takes the time, are read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pion.errors import BadInput
from pion.generate import Text, next_logits, read_prompt
from pion.model.batch_cache import BatchCache
from pion.model.cache import KVCache
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
    texts = [Text(model, ids, **settings) for ids in prompts]
    return _continue(model, texts, min(rows, len(texts)))


def _continue(model: Decoder, texts: list[Text], rows: int) -> Iterator[tuple[int, int | None]]:
    room = max((len(text.ids) + text.limit for text in texts), default=0)
    cache = BatchCache(model.config, rows, room)
    waiting = list(enumerate(texts))[::-1]
    in_rows: list[tuple[int, Text]] = []
    while waiting or in_rows:
        while waiting and len(in_rows) < rows:
            number, text = waiting.pop()
            prompt = KVCache(model.config, max_tokens=len(text.ids))
            token = None if text.ended else text.draw(read_prompt(model, text.ids, prompt))
            if token is not None:
                yield number, token
            if token is None or text.ended:
                yield number, None
            else:
                cache.join(prompt)
                in_rows.append((number, text))
        if in_rows:
            logits = next_logits(model, [[text.ids[-1]] for _, text in in_rows], cache)
            ended = []
            for row, (number, text) in enumerate(in_rows):
                token = text.draw(logits[row])
                if token is not None:
                    yield number, token
                if token is None or text.ended:
                    yield number, None
                    ended.append(row)
            for row in reversed(ended):  # the last text takes the row, so later rows leave first
                cache.leave(row)
                in_rows[row] = in_rows[-1]
                in_rows.pop()

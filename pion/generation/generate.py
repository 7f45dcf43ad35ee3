"""Continue texts token by token: from a prompt's ids to new ids, and from ids to text.

Several texts are continued together: the weights, whose reading takes the time, are read once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.generation.decoding import PROMPT_PIECE, Decoding, decoding_of
from pion.generation.drafts import with_drafts
from pion.generation.text import Settings, Text, draw_together
from pion.generation.text_stream import TextStream
from pion.model.decoder import Decoder

ROWS = 16


# Users call this function with the settings as keywords, so it has more parameters than most.
def generate(
    model: Decoder,
    ids: Sequence[int],
    *,
    stop_ids: Iterable[int],
    max_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 0.9,
    repetition_penalty: float = 1.0,
    min_p: float = 0.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[int, float] | None = None,
    vocab_size: int | None = None,
    seed: int | None = None,
    drafts: int = 0,
) -> Iterator[int]:
    """Continue `ids`, yielding each new token id as it is drawn.

    `sample` explains `temperature`, `top_k`, `top_p`, `min_p` and the penalties. `logit_bias` is
    added to the logits of ids before all of them: 100 all but forces an id, and -100 all but
    forbids it. Generation ends before a token of `stop_ids` (usually `[tokenizer.end_of_text]`),
    after `max_tokens`, or when prompt and continuation fill the model's context. Ids of
    `vocab_size` and above are never drawn. The same `seed` draws the same tokens. torch's global
    random state is neither read nor changed. `drafts` tokens are guessed for speed alone.

    Raises BadInput, before the first token, if settings make no sense, or the prompt is empty, is
    longer than the context or has ids without an embedding; and at its first such token for a model
    whose predictions are not finite.
    """
    new = generate_batch(
        model,
        [ids],
        rows=1,
        drafts=drafts,
        stop_ids=stop_ids,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        min_p=min_p,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=logit_bias,
        vocab_size=vocab_size,
        seed=seed,
    )
    return (token for _, token in new if token is not None)


def stream_text(
    tokenizer: Tokenizer, ids: Iterable[int], *, continues: bool = False
) -> Iterator[str]:
    """Decode ids as they arrive, but hold back the bytes of a character that isn't complete.

    Joined, the pieces are the decoded text. Bytes that never become a character are U+FFFD. A text
    that `continues` another one keeps a space at its beginning.
    """
    stream = TextStream(tokenizer, continues=continues)
    for token in ids:
        if text := stream.push(token).text:
            yield text
    if text := stream.end().text:
        yield text


def generate_batch(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    rows: int = ROWS,
    drafts: int = 0,
    **settings: Any,
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
    return _continued_batch(with_drafts(model, drafts), texts, min(rows, len(texts)))


def _continued_batch(
    model: Decoder, texts: list[Text], rows: int
) -> Iterator[tuple[int, int | None]]:
    decoding = decoding_of(model, rows, max((text.room for text in texts), default=0))
    waiting = deque(enumerate(texts))
    numbers: list[int] = []  # of the texts in the rows
    new: list[tuple[int, int | None]] = []

    def draw_rows(rows: Sequence[int], logits: Tensor) -> list[int | None]:
        together = [decoding.texts[row] for row in rows]
        continued: list[int | None] = []
        for row, text, token in zip(rows, together, draw_together(together, logits)):
            if isinstance(token, Exception):
                raise token
            new.extend([] if token is None else [(numbers[row], token)])
            new.extend([(numbers[row], None)] if text.ended else [])
            continued.append(None if text.ended else token)
        return continued

    while waiting or numbers:
        if waiting and decoding.free:
            group = _next_group(waiting, decoding)
            together = [text for _, text in group]
            is_alone = len(group) == 1
            logits = (
                decoding.read_alone(together[0]) if is_alone else decoding.read_together(together)
            )
            first = len(numbers)
            numbers += [number for number, _ in group]
            draw_rows(range(first, len(numbers)), logits)
        else:
            decoding.step(draw_rows)
        yield from new
        new.clear()
        # The last text takes the row of a text that has ended, so later rows leave first.
        for row in reversed(range(len(numbers))):
            if decoding.texts[row].ended:
                decoding.leave(row)
                numbers[row] = numbers[-1]
                numbers.pop()


def _next_group(waiting: deque[tuple[int, Text]], decoding: Decoding) -> list[tuple[int, Text]]:
    """Take the texts from `waiting` that are read together: at least one."""
    group = [waiting.popleft()]
    while waiting and len(group) < decoding.free:
        together = [text for _, text in (*group, waiting[0])]
        if not decoding.fits_together(together, PROMPT_PIECE):
            break
        group.append(waiting.popleft())
    return group

"""Compare the speed of answers that must fit a JSON schema with answers of any text.

Both are decoded by the engine of `pion serve`, 1 and 8 answers at once: Pion-small (103M, a
vocabulary of 50 thousand) with random weights, in the dtype that `pion serve` chooses. The schema
is a list of people that has no end within the tokens that are drawn. Each side draws as many
tokens, at random, after the same prompts.
"""

from __future__ import annotations

import queue
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.comparison import Comparison, compare
from benchmarks.decoding import PROMPT_TOKENS, random_prompts
from benchmarks.exported import TOKENIZER, export_random
from benchmarks.interleaved import Work, alternate, speed_of
from pion.data.tokens.tokenizer import Tokenizer
from pion.formats.load import load_decoder
from pion.generation.answer import Answer, Drawn, Ended, Event, Listener
from pion.generation.engine import Engine
from pion.generation.grammar import Grammars
from pion.generation.text import Settings, Text
from pion.model.decoder import Decoder
from pion.train.hardware import pick_dtype, torch_dtype

ROUNDS, WARMUP = 9, 1
TOGETHER = (1, 8)
TOKENS, QUICK_TOKENS = 64, 8
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "city": {"enum": ["Paris", "Lima", "Kyoto", "Cairo"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        "email": {"anyOf": [{"type": "string", "maxLength": 30}, {"type": "null"}]},
    },
    "required": ["name", "age", "city", "tags", "email"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 100}


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison for each number of answers at once."""
    new = QUICK_TOKENS if quick else TOKENS
    with tempfile.TemporaryDirectory() as folder:
        model = export_random(Path(folder) / "model", quick)
        name = pick_dtype("auto", torch.device("cpu"), generating=True)
        decoder = load_decoder(model, dtype=torch_dtype(name)).joined()
    tokenizer = Tokenizer.from_file(TOKENIZER)
    grammar = Grammars(tokenizer).of_schema(SCHEMA)
    engine = Engine(decoder, deliver, slots=max(TOGETHER), queue=0, seq_len=PROMPT_TOKENS + new)
    engine.start()
    try:
        for count in TOGETHER:
            prompts = random_prompts(count, tokenizer.vocab_size)
            settings = [
                Settings(stop_ids=(), max_tokens=new, vocab_size=tokenizer.vocab_size, seed=seed)
                for seed in range(count)
            ]
            constrained = [replace(one, grammar=grammar) for one in settings]
            measures = {
                "schema": speed_of(work(engine, decoder, prompts, constrained)),
                "any": speed_of(work(engine, decoder, prompts, settings)),
            }
            speeds = alternate(measures, *((2, 1) if quick else (ROUNDS, WARMUP)))
            yield compare(
                (f"JSON of a schema, {count} at once", "any text", "tokens/s"),
                speeds["schema"],
                speeds["any"],
                details={"dtype": name, "new tokens": new, "vocabulary": tokenizer.vocab_size},
            )
    finally:
        engine.close()


def deliver(events: Sequence[tuple[Listener, Event]]) -> None:
    """Give each event to its listener."""
    for listener, event in events:
        listener(event)


def work(
    engine: Engine,
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Settings],
) -> Work:
    """Return the work of a round: an answer to each prompt, counted in tokens."""

    def draw(number: int) -> float:
        events: queue.Queue[Event] = queue.Queue()
        texts = map(Text, [model] * len(prompts), prompts, settings)
        answers = [Answer(text, None, events.put) for text in texts]
        engine.submit(answers)
        drawn = ended = 0
        while ended < len(answers):
            event = events.get()
            if isinstance(event, Drawn):
                drawn += 1
            elif isinstance(event, Ended):
                ended += 1
            else:
                raise SystemExit(f"an answer failed: {event}")
        if drawn != sum(one.max_tokens for one in settings):
            raise SystemExit(f"{drawn} tokens were drawn, so a text ended early")
        return drawn

    return draw

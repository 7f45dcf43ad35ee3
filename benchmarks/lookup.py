"""Count the tokens that speculative decoding by prompt look-up would accept in a step.

A look-up guesses that the text repeats itself: it finds the last tokens earlier in the text, and
drafts the tokens that followed them there (Saxena 2023, "Prompt lookup decoding"). The model checks
all drafted tokens in one step. A token that is drafted for sure is accepted with the probability
that the model gives it. So the accepted tokens are those in which a draft agrees with a text that
the model draws without drafts. This counts them in such texts.

The texts continue held-out prose of Python's standard library, and answer questions about it, as
the demo is used. The model is the demo's:

    pion run benchmarks/demo_muon.yaml && python -m benchmarks.lookup MODEL_FOLDER

The counts are written to benchmarks/results/lookup.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pion
from pion.data.chat.conversation import render
from pion.data.documents.python_docs import documents, is_held_out
from pion.data.documents.python_qa import dialogues
from pion.data.tokens.tokenizer import Tokenizer

RESULT = Path(__file__).parent / "results" / "lookup.json"
TEXTS = 48
PROMPT_TOKENS = 96  # of prose; a question has its own length
NEW_TOKENS = 128
HELD_OUT = 0.05  # as in jobs/demo.yaml
LONGEST_MATCH = 3  # tokens; the longest match is tried first
DRAFTS = (4, 8)
SETTINGS: dict[str, dict[str, Any]] = {"greedy": {"temperature": 0}, "default": {"seed": 0}}


def prose(tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield the first tokens of held-out documents."""
    for document in documents():
        if is_held_out(document.origin, HELD_OUT):
            ids = tokenizer.encode(document.text)
            if len(ids) >= PROMPT_TOKENS:
                yield ids[:PROMPT_TOKENS]


def questions(tokenizer: Tokenizer) -> Iterator[list[int]]:
    """Yield held-out conversations up to their first answer."""
    for dialogue in dialogues():
        if is_held_out(dialogue.origin, HELD_OUT):
            asked = next(n for n, turn in enumerate(dialogue.turns) if turn.role == "user")
            text, _ = render(tokenizer, dialogue.turns[: asked + 1], add_generation_prompt=True)
            yield tokenizer.encode(text)


def draft(ids: Sequence[int], most: int) -> Sequence[int]:
    """Return at most `most` tokens that followed the last tokens of `ids` earlier in `ids`."""
    for length in range(LONGEST_MATCH, 0, -1):
        end = tuple(ids[-length:])
        for start in range(len(ids) - length - 1, -1, -1):
            if tuple(ids[start : start + length]) == end:
                return ids[start + length : start + length + most]
    return ()


def accepted(prompt: list[int], new: Sequence[int], most: int) -> tuple[int, int]:
    """Return how many drafted tokens agree with the text, and in how many steps it is decoded."""
    done = agreed = steps = 0
    while done < len(new):
        guess = draft([*prompt, *new[:done]], most)
        right = 0
        while right < min(len(guess), len(new) - done) and guess[right] == new[done + right]:
            right += 1
        agreed += right
        done += right + 1  # the step also draws a token after the accepted ones
        steps += 1
    return agreed, steps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="the folder of the demo's fine-tuned model")
    options = parser.parse_args()
    model, tokenizer = pion.load(options.model)
    assert tokenizer is not None
    report: dict[str, Any] = {
        "model": "benchmarks/demo_muon.yaml",
        "texts": TEXTS,
        "new_tokens_at_most": NEW_TOKENS,
        "accepted_per_step": {},
    }
    for what, prompts in (("prose", prose(tokenizer)), ("questions", questions(tokenizer))):
        chosen = list(islice(prompts, TEXTS))
        for name, settings in SETTINGS.items():
            new: list[list[int]] = [[] for _ in chosen]
            for number, token in pion.generate_batch(
                model,
                chosen,
                stop_ids=[tokenizer.end_of_text],
                vocab_size=tokenizer.vocab_size,
                max_tokens=NEW_TOKENS,
                **settings,
            ):
                if token is not None:
                    new[number].append(token)
            for most in DRAFTS:
                counts = [accepted(*text, most) for text in zip(chosen, new, strict=True)]
                rate = sum(agreed for agreed, _ in counts) / sum(steps for _, steps in counts)
                report["accepted_per_step"][f"{what}, {name}, {most} drafted"] = round(rate, 3)
                print(f"{what}, {name}, {most} drafted: {rate:.3f} accepted a step", flush=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()

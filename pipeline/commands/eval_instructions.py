"""`pion eval MODEL --instructions`: how well a tuned model follows built-in instructions."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput
from pion.evaluation.instructions.prompts import KINDS, LEAST, MOST, instructions
from pipeline.commands.chat import tell_replaced
from pipeline.console.formats import duration
from pipeline.report.instructions import instructions_in_words, kinds_in_words

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.model.decoder import Decoder
    from pipeline.commands.eval import Part
    from pipeline.models.find import FoundModel

# All take minutes on a CPU, and seconds on a GPU.
ON_CPU = 60


def add_instructions(parser: argparse.ArgumentParser) -> None:
    """Add the option: None without it, and 0 if it has no number."""
    parser.add_argument(
        "--instructions",
        metavar="N",
        nargs="?",
        type=_count,
        const=0,
        help="ask a fine-tuned model N prompts whose answers code can check, "
        f"{len(KINDS)} kinds, as many of each ({LEAST} to {MOST}; default: {MOST}, and {ON_CPU} "
        "on a CPU)",
    )


def instructions_part(
    found: FoundModel, model: Decoder, chat_format: ChatFormat, count: int
) -> Part:
    """Return what asks a model `count` instructions; 0: the default for its device.

    Raises BadInput if the model was not fine-tuned on conversations.
    """
    if not found.chat:
        raise BadInput(
            f"{found.label} is a base model: it was not fine-tuned on conversations, and has no "
            "chat template to ask it with. Nothing was measured. Name a fine-tuned model, such as "
            "RUN@sft, or train one (docs/fine-tune.md). To measure a base model, name texts: "
            "pion eval MODEL FILE"
        )
    on_cpu = model.embed.weight.device.type == "cpu"
    asked = instructions(count or (ON_CPU if on_cpu else MOST))

    def part() -> tuple[dict[str, Any], str]:
        from pion.evaluation.instructions.measure import measure

        tokenizer, begin = chat_format.tokenizer, time.monotonic()
        tell_replaced(tokenizer, " ".join(one.prompt for one in asked), "the instructions")

        def progress(answered: int) -> None:
            if answered % len(KINDS) == 0:
                took = duration(time.monotonic() - begin)
                line = f"instructions: {answered} of {len(asked)} answered, {took}"
                print(line, file=sys.stderr, flush=True)

        with closing(chat_format):
            scored = measure(model.joined(), chat_format, asked, progress)
        result = dataclasses.asdict(scored)
        return result, "\n".join([instructions_in_words(result), *kinds_in_words(result)])

    return part


def _count(text: str) -> int:
    try:
        return len(instructions(int(text)))
    except BadInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text[:40]!r} is no number of prompts. Write MODEL and FILE before --instructions"
        ) from None

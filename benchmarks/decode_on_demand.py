"""Decode when asked, for a comparison of two checkouts in turns: see benchmarks/cache.py.

Prints where `pion` was imported from. Then each line of the standard input names a number of texts,
and is answered by the seconds that a new token of each of them took, without reading the prompts.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

import pion

PROMPT_TOKENS, NEW_TOKENS = 32, 33


def main() -> None:
    torch.manual_seed(0)
    model = pion.Decoder(pion.ModelConfig.preset("pion-small")).joined()
    print(pion.__file__, flush=True)
    for line in sys.stdin:
        prompts = [[(7 * n + i) % 999 for i in range(PROMPT_TOKENS)] for n in range(int(line))]
        at = []
        settings: dict[str, Any] = {"stop_ids": (), "max_tokens": NEW_TOKENS, "temperature": 0}
        if len(prompts) == 1:
            for _ in pion.generate(model, prompts[0], **settings):
                at.append(time.perf_counter())
        else:
            for _ in pion.generate_batch(model, prompts, rows=len(prompts), **settings):
                at.append(time.perf_counter())
        # The first token of each text comes with its prompt.
        print((at[-1] - at[len(prompts) - 1]) / (NEW_TOKENS - 1), flush=True)


if __name__ == "__main__":
    main()

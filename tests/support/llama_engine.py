"""llama.cpp as a program apart: logits and ids of a GGUF file, by npm's node-llama-cpp."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.support.waiting import run_to_end

VARIABLE = "NODE_LLAMA_CPP"
PACKAGE = "node_modules/node-llama-cpp"
_SCRIPT = Path(__file__).with_suffix(".mjs")


def engine_folder():
    """Return the folder of node-llama-cpp; skip the test if there is none."""
    folder = Path(os.environ.get(VARIABLE, "")) / PACKAGE
    if shutil.which("node") is None or not folder.is_dir():
        pytest.skip(
            f"no llama.cpp: npm install --prefix FOLDER node-llama-cpp@3.22.1, then {VARIABLE}="
            "FOLDER"
        )
    return folder


def run_engine(model, *, rows=(), texts=(), specials=False, cache="F32"):
    """Return the logits (T, vocab_size) of each row of ids, and the ids of each text.

    With `specials`, texts that spell special tokens give the special ids. `cache` is the type of
    the keys and values that are kept.
    """
    logits, ids = model.with_suffix(".logits"), model.with_suffix(".ids")
    asked = {
        "package": str(engine_folder()),
        "model": str(model),
        "logits": str(logits),
        "ids": str(ids),
        "cache": cache,
        "rows": [list(map(int, row)) for row in rows],
        "texts": list(texts),
        "specials": specials,
    }
    done = run_to_end(["node", _SCRIPT], input=json.dumps(asked))
    assert done.returncode == 0, done.stderr
    values = np.fromfile(logits, np.float32)
    positions = sum(len(row) for row in rows)
    values = values.reshape(positions, -1) if positions else values
    starts = np.cumsum([0, *(len(row) for row in rows)])
    found = [values[start:end] for start, end in pairwise(starts)]
    return found, json.loads(ids.read_text())

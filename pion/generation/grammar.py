"""Let a model write only JSON that fits a schema: which ids may follow, by llguidance.

llguidance (https://github.com/guidance-ai/llguidance, MIT) is an optional package: the extra
`json`. It parses bytes, so an id may end in the middle of a character or of a word of the grammar.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.generation.grammar_check import MEMORY

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

# Of a schema: a longer one would take long to compile.
MOST_CHARACTERS = 1 << 16
# What compiling one may take, in seconds of a CPU.
SECONDS = 4
# Small models may write spaces for ever where the grammar allows any number.
_FORM: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}


class Grammar:
    """What a text must look like, and how far one text has come. Of several, each has a `copy`."""

    def __init__(self, matcher: LLMatcher, rows: int, end_of_text: int) -> None:
        self._matcher, self._rows, self._end_of_text = matcher, rows, end_of_text

    def copy(self) -> Grammar:
        """Return the grammar for another text, which has not begun."""
        return Grammar(self._matcher.deep_copy(), self._rows, self._end_of_text)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    @property
    def may_end(self) -> bool:
        """Whether the text may end here."""
        return bool(self._matcher.is_accepting())

    def allowed(self) -> Tensor:
        """Return which ids of text may follow, (vocab,) bool. Raises BadInput if it can't be
        found."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        mask = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._rows]).bool()
        mask[self._end_of_text] = False  # `may_end` says it, for all ids that end a text
        return mask

    def take(self, token: int) -> None:
        """Continue with an id that was drawn. Raises BadInput if it is not allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise BadInput(
                "the schema can't be followed: it refers to itself without end, or allows too much "
                "at once. Use fewer optional properties, and an end for each $ref"
            )


class Grammars:
    """Makes the grammars of one tokenizer. Threads may share it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self._known: LLTokenizer | None = None

    def of_schema(self, schema: Mapping[str, Any]) -> Grammar:
        """Return the grammar of a JSON schema (https://json-schema.org/draft/2020-12).

        Raises BadInput for a schema that can't be met, takes too long to compile or has parts that
        llguidance does not know, and if llguidance is not installed.
        """
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise BadInput(
                "this Pion is installed without llguidance, which lets answers be JSON. Install "
                "it: uv pip install llguidance, or in a checkout uv sync --extra json"
            ) from None
        text = json.dumps(schema)
        if len(text) > MOST_CHARACTERS:
            raise BadInput(
                f"the schema has {len(text):,} characters, and {MOST_CHARACTERS:,} are possible"
            )
        compiled = LLMatcher.grammar_from_json_schema(text, overrides=_FORM)
        if wrong := _why_not(compiled):
            raise BadInput(f"this schema can't be used: {wrong}")
        matcher = LLMatcher(self._tokens(), compiled, log_level=0)
        if matcher.is_error():
            raise BadInput(f"this schema can't be used: {matcher.get_error()[:300]}")
        grammar = Grammar(matcher, self._tokenizer.vocab_size, self._tokenizer.end_of_text)
        grammar.allowed()  # here, before an answer begins
        return grammar

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._known is None:
                wrapped = TokenizerWrapper(_Tokens(self._tokenizer))
                self._known = LLTokenizer(wrapped, n_vocab=self._tokenizer.vocab_size)
            return self._known


@lru_cache(64)
def _why_not(grammar: str) -> str:
    """Return why a grammar can't be compiled in reasonable time and memory; "" if it can be."""
    check = Path(__file__).with_name("grammar_check.py")
    command = [sys.executable, "-I", str(check), str(SECONDS)]
    done = subprocess.run(command, input=grammar.encode(), capture_output=True, env={})
    if done.returncode:
        return (
            f"to compile it takes more than {SECONDS} s or {MEMORY >> 20:,} MB. Use fewer and "
            "simpler patterns"
        )
    return done.stdout.decode().strip()[:300]


class _Tokens:
    """A tokenizer as llguidance wants to see it: the bytes of each id."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.end_of_text
        self.bos_token_id = None
        self.tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.vocab_size)]
        self.special_token_ids = [id for id, data in enumerate(self.tokens) if not data]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)

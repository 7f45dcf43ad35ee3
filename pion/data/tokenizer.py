"""Byte-level BPE tokenizers: load, train, encode in parallel, and count bytes per token.

Text is always plain text: a document that spells out ``<|endoftext|>`` is encoded like any other
characters and never gives the special id. Only code inserts special ids.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from pion.data.arrays import write_atomically
from pion.data.tokenizer_steps import check_steps
from pion.errors import BadInput
from pion.later_fields import shown
from pion.rust_panic import is_panic
from pion.untrusted import LARGEST_TOKENIZER, parse_json, read_file

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|eos|>", "<|end_of_text|>", "<eos>", "</s>")
PAD_NAMES = (PAD, "<pad>", "[PAD]")

# Long documents are encoded in pieces of this many characters, on all cores. The library encodes a
# whole document on one core and tracks all of it; that takes four times as long.
PIECE_CHARS = 8192
# GPT-2's pre-tokenizer always starts a new piece between a word character and a whitespace, and
# nothing before that place depends on the text after it. So a cut at such a place changes no id.
SAFE_CUT = re.compile(r"(?<=\w)[ \n]")
# Ids are exact in fp32 below this number.
MOST_IDS = 2**24
# JSON can contain half a character (a lone surrogate), which has no UTF-8 bytes.
SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A byte-level BPE tokenizer.

    Attributes:
        vocab_size: rows that an embedding needs for all ids of this tokenizer (largest id + 1).
        end_of_text: id that separates documents and ends an assistant's turn.
        end_of_text_token: the literal text of that id.
        pad: id that fills unused tails; ``end_of_text`` if the tokenizer has no pad token.
        specials: the literal texts of all special tokens.
    """

    def __init__(self, source: str, where: str = "tokenizer") -> None:
        """Build the tokenizer from the text of a ``tokenizer.json``. Errors call it ``where``.

        Raises:
            BadInput: the text is not a tokenizer, or the tokenizer is not byte-level BPE or has no
                end-of-text token.
        """
        self._source = source
        self._where = where
        settings = _parse(source, where)
        # Truncation, padding and templates that add tokens would change the ids, and a byte-level
        # post-processor removes whitespace from offsets.
        plain = {**settings, "truncation": None, "padding": None, "post_processor": None}
        self._plain = _build(plain, where)
        self._plain.encode_special_tokens = True  # encode special tokens in texts as plain text

        special_ids = {t["content"]: t["id"] for t in settings["added_tokens"] if t["special"]}
        self.specials: tuple[str, ...] = tuple(special_ids)
        self.end_of_text_token: str = _end_of_text_token(special_ids, where)
        self.end_of_text: int = special_ids[self.end_of_text_token]
        pad_token = next((name for name in PAD_NAMES if name in special_ids), None)
        self.pad: int = special_ids[pad_token] if pad_token else self.end_of_text
        self.vocab_size: int = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        if self.vocab_size > MOST_IDS:
            raise BadInput(f"{where}: an id is {self.vocab_size - 1:,}; ids end at {MOST_IDS:,}")
        self._may_cut = _is_gpt2_pre_tokenizer(settings) and not any(
            not t["special"] for t in settings["added_tokens"]
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Load a ``tokenizer.json``.

        Raises:
            BadInput: the file is missing or isn't a usable tokenizer (see the constructor).
        """
        try:
            source = read_file(path, LARGEST_TOKENIZER).decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{path}: can't read this tokenizer ({error})") from None
        return cls(source, where=str(path))

    def save(self, path: str | Path) -> None:
        """Write the ``tokenizer.json`` that this tokenizer was made from, byte for byte.

        Raises:
            BadInput: the disk is full or the path can't be written.
        """
        write_atomically(Path(path), self._source.encode())

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``. None of them is a special id."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, using all cores.

        The caller may set ``TOKENIZERS_PARALLELISM`` and ``RAYON_NUM_THREADS``. A lone surrogate
        becomes U+FFFD.
        """
        pieces = [self._pieces(text) for text in texts]
        flat = [piece for document in pieces for piece in document]
        encoded = iter(self._encode(self._plain.encode_batch_fast, flat))
        return [[i for _ in document for i in next(encoded).ids] for document in pieces]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of ``text`` and the ``[start, end)`` of each id in characters.

        Offsets include whitespace. If several tokens share the bytes of one character, the
        character belongs to all of them.
        """
        (encoding,) = self._encode(self._plain.encode_batch, [text])
        return encoding.ids, encoding.offsets

    def encode_batch_from(
        self, texts: Sequence[str], starts: Sequence[int]
    ) -> list[tuple[list[int], int]]:
        """Return the ids of each text, and how many of them begin before the text's ``start``.

        This uses all cores and avoids the cost of listing every offset.
        """
        found = []
        encoded = self._encode(self._plain.encode_batch, list(texts))
        for encoding, start in zip(encoded, starts, strict=True):
            ids = encoding.ids
            before = encoding.char_to_token(start)  # None if the text has no such character
            if before is None:
                before = len(ids)
            elif (span := encoding.token_to_chars(before)) and span[0] < start:
                before += 1
            found.append((ids, before))
        return found

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """Return the text of ``ids``, without special tokens unless ``specials``.

        An incomplete UTF-8 sequence becomes U+FFFD.
        """
        with _library(self._where):
            text: str = self._plain.decode([int(i) for i in ids], skip_special_tokens=not specials)
        return text

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each id, int32 ``(vocab_size,)``; 0 for specials.

        Summed over the ids of a text, this is the number of bytes in the text, after the
        tokenizer's normalizer if it has one. Bits per byte are relative to this sum.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, index in self._plain.get_vocab(with_added_tokens=False).items():
            lengths[index] = len(token)  # the byte alphabet spells each byte as one character
        for index, added in self._plain.get_added_tokens_decoder().items():
            lengths[index] = 0 if added.special else len(added.content.encode())
        return lengths

    def fits(self, model_vocab_size: int, where: str = "tokenizer") -> None:
        """Check that a model with ``model_vocab_size`` embedding rows has a row for every id.

        Raises:
            BadInput: the model has fewer rows.
        """
        if self.vocab_size > model_vocab_size:
            raise BadInput(
                f"{where}: the tokenizer doesn't fit the model: it produces ids up to "
                f"{self.vocab_size - 1:,}, but model.vocab_size is {model_vocab_size:,}. "
                f"Set model.vocab_size to {self.vocab_size:,} or more, or use a different "
                "tokenizer."
            )

    def _encode(
        self, encode_batch: Callable[..., list[tokenizers.Encoding]], texts: list[str]
    ) -> list[tokenizers.Encoding]:
        with _library(self._where):
            try:
                return encode_batch(texts, add_special_tokens=False)
            except TypeError:  # the library raises this for a lone surrogate
                valid = [SURROGATE.sub("\ufffd", text) for text in texts]
                return encode_batch(valid, add_special_tokens=False)

    def _pieces(self, text: str) -> list[str]:
        """Cut a long text where cutting changes no id."""
        if not self._may_cut or len(text) <= 2 * PIECE_CHARS:
            return [text]
        pieces, start = [], 0
        while len(text) - start > 2 * PIECE_CHARS:
            cut = SAFE_CUT.search(text, start + PIECE_CHARS)
            if cut is None:
                break
            pieces.append(text[start : cut.start()])
            start = cut.start()
        return [*pieces, text[start:]]


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE whose ids 0 and 1 are end-of-text and pad.

    Byte-level BPE is from Radford et al. 2019, "Language models are unsupervised multitask
    learners". The result has fewer than ``vocab_size`` entries if the texts have too few distinct
    pairs.

    Raises:
        BadInput: there is no text, or the vocabulary is too small for 256 bytes and two specials.
    """
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + 2
    if vocab_size < smallest:
        raise BadInput(
            f"tokenizer.vocab_size: {vocab_size:,} is too small for byte-level BPE, which needs "
            f"256 bytes and 2 special tokens: {smallest} or more."
        )
    seen = False

    def watched() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen = seen or bool(text)
            yield SURROGATE.sub("\ufffd", text)

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(watched(), trainer)
    if not seen:
        raise BadInput("tokenizer: the corpus is empty: there is no text to train a tokenizer on.")
    return Tokenizer(bpe.to_str(), where="the tokenizer just trained")


@contextmanager
def _library(where: str) -> Iterator[None]:
    """Raise BadInput, naming `where`, for what goes wrong inside the tokenizers library.

    The library raises bare Exceptions, and for a mistake in its own code a PanicException.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BadInput(
            f"{where}: the tokenizers library can't use this tokenizer ({shown(str(error))})"
        ) from None


def _parse(source: str, where: str) -> dict[str, Any]:
    try:
        settings = parse_json(source, "it")
        model, vocab = settings["model"]["type"], settings["model"]["vocab"]
        added = settings.get("added_tokens") or []
    except (BadInput, KeyError, TypeError) as error:
        raise BadInput(
            f"{where}: not a tokenizer in the tokenizer.json format ({shown(error)})"
        ) from None
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    if model != "BPE" or not isinstance(vocab, dict) or not set(alphabet) <= set(vocab):
        raise BadInput(
            f"{where}: not a byte-level BPE tokenizer: key model.type must be BPE (it is "
            f"{shown(model)}) and key model.vocab must contain all 256 bytes, so that any text "
            "encodes exactly."
        )
    return {**settings, "added_tokens": added}


def _build(settings: dict[str, Any], where: str) -> tokenizers.Tokenizer:
    with _library(where):
        built = tokenizers.Tokenizer.from_str(json.dumps(settings))
    check_steps(settings, where)
    return built


def _end_of_text_token(special_ids: dict[str, int], where: str) -> str:
    for name in END_OF_TEXT_NAMES:
        if name in special_ids:
            return name
    found = shown(", ".join(special_ids)) if special_ids else "none"
    raise BadInput(
        f"{where}: no end-of-text token: key added_tokens must contain a special token named one "
        f"of {', '.join(END_OF_TEXT_NAMES)}; it contains {found}."
    )


def _is_gpt2_pre_tokenizer(settings: dict[str, Any]) -> bool:
    pre = settings.get("pre_tokenizer") or {}
    return (
        settings.get("normalizer") is None
        and pre.get("type") == "ByteLevel"
        and pre.get("use_regex", True)
        and not pre.get("add_prefix_space", True)
    )

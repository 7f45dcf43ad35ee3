"""BPE tokenizers: load, train, encode in parallel, and count bytes per token.

Text is always plain text: a document that spells out ``<|endoftext|>`` is encoded like any other
characters and never gives the special id. Only code inserts special ids.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers

from pion.data.tokens.safe_cuts import may_cut, pieces
from pion.data.tokens.token_bytes import (
    REPLACEMENT,
    ReplacedCharacters,
    bytes_of,
    bytes_of_piece,
    missing_bytes,
    unspelled,
)
from pion.data.tokens.token_names import FILES, TOKENIZER_CONFIG, read_optional, token_names
from pion.data.tokens.tokenizer_json import (
    STRIP,
    build,
    first_token,
    in_pieces,
    library,
    parse,
    steps_of,
)
from pion.errors import BadInput
from pion.files import write_atomically
from pion.later_fields import shown
from pion.untrusted import LARGEST_TOKENIZER, read_file

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
END_OF_TEXT_NAMES = (END_OF_TEXT, "<|eos|>", "<|end_of_text|>", "<eos>", "</s>")
PAD_NAMES = (PAD, "<pad>", "[PAD]")

# What to do where a model has fewer rows than its tokenizer ids, and where a job sets the rows.
RESIZE = (
    "Take the tokenizer.json that the model was trained with; or give the model more rows: python "
    "-c \"from transformers import AutoModelForCausalLM as M; m = M.from_pretrained('MODEL'); "
    "m.resize_token_embeddings({0}); m.save_pretrained('FOLDER')\", copy its tokenizer files "
    "there, and use FOLDER"
)
MORE_ROWS = "Set model.vocab_size to {0:,} or more, or use a different tokenizer"

# Ids are exact in fp32 below this number.
MOST_IDS = 2**24
# A longer word is cut into words of this many bytes before a vocabulary is learned from it.
# Learning from a word takes time with the square of its length.
LONGEST_WORD = 1024
# Truncation and padding would change the ids.
_UNCHANGED = {"truncation": None, "padding": None}
# JSON can contain half a character (a lone surrogate), which has no UTF-8 bytes.
SURROGATE = re.compile("[\ud800-\udfff]")
# Special tokens that no text has. Gemma 3's last one has no row in its models of texts.
_OF_MEDIA = re.compile("image|audio|video")


class Tokenizer:
    """A BPE tokenizer, of bytes or of pieces (`pion.data.tokens.tokenizer_json`).

    Attributes:
        vocab_size: rows that an embedding needs for all ids of texts (largest id + 1). Special
            tokens of images and sound that come last have no row.
        end_of_text: id that separates documents. With Pion's own chat template it also ends an
            assistant's turn; another template may have a different end (``SpecialTokens``).
        end_of_text_token: the literal text of that id.
        first: id that the tokenizer's post-processor puts before a text (Llama's
            ``<|begin_of_text|>``), or None. It starts every document in training, evaluation and
            generation.
        pad: id that fills unused tails; ``end_of_text`` if the tokenizer has no pad token.
        specials: the literal texts of all special tokens.
        special_ids: the id of each special token, by its text.
        plain_added: the id of each other added token, by its text (Qwen's ``<think>``).
        normalization: how a text is changed before it is encoded ("NFC", say), or None. Bits per
            byte then divide by the bytes of the changed text: see ``token_bytes``.
        strips: whether a decoded text loses one space at its beginning. Llama 2's tokenizer puts
            this space there.
        joint: "" or a text to encode before a text that continues another one, so that no space
            is put between these two.
    """

    # What the last tokenizer was read from, and the tokenizer.
    _last: "ClassVar[tuple[Any, Tokenizer] | None]" = None

    def __init__(
        self, source: str, where: str = "tokenizer", *, folder: str | Path | None = None
    ) -> None:
        """Build the tokenizer from the text of a ``tokenizer.json``. Errors call it ``where``.

        If the tokenizer has no separator of a known name (``END_OF_TEXT_NAMES``), the ``eos_token``
        of the tokenizer_config.json in ``folder`` separates documents.

        Raises:
            BadInput: the text is not a tokenizer, or the tokenizer is no known BPE or has no
                end-of-text token, or puts several tokens before a text.
        """
        self._source, self._where = source, where
        settings = parse(source, where)
        self._plain = build(settings | _UNCHANGED, where)

        special_ids: dict[str, int] = {
            t["content"]: t["id"] for t in settings["added_tokens"] if t["special"]
        }
        self.special_ids = special_ids
        self.specials: tuple[str, ...] = tuple(special_ids)
        self.first: int | None = first_token(self._plain, special_ids, where)
        # transformers follows this key, whatever the post-processor does.
        config = read_optional(Path(folder) / TOKENIZER_CONFIG) if folder is not None else {}
        if config.get("add_bos_token") is False:
            self.first = None
        # Only our own code adds tokens. A byte-level post-processor removes whitespace from
        # offsets, even when it adds nothing.
        self._plain.post_processor = None
        self._plain.encode_special_tokens = True  # encode special tokens in texts as plain text

        self.end_of_text_token: str = _end_of_text_token(special_ids, folder, where)
        self.end_of_text: int = special_ids[self.end_of_text_token]
        pad_token = next((name for name in PAD_NAMES if name in special_ids), None)
        self.pad: int = special_ids[pad_token] if pad_token else self.end_of_text
        self.vocab_size: int = _rows(self._plain, special_ids, where)
        steps = steps_of(settings.get("normalizer"))
        self.normalization = ", ".join(str(step.get("type")) for step in steps) or None
        self._may_cut = may_cut(settings)
        self._pieces = in_pieces(settings)
        self.strips = self._pieces and STRIP in steps_of(settings.get("decoder"))
        self.joint = "\x02" if self._pieces else ""
        if self._pieces:
            self.normalization = "putting a space before it" if self.strips else None
        missing = frozenset() if self._pieces else missing_bytes(settings["model"]["vocab"])
        self._unspelled = unspelled(missing)
        self._added = self._plain.get_added_tokens_decoder()
        self.plain_added: dict[str, int] = {
            token.content: index for index, token in self._added.items() if not token.special
        }

    @classmethod
    def from_file(cls, path: str | Path, where: str | None = None) -> "Tokenizer":
        """Load a ``tokenizer.json``; see the constructor for the tokenizer_config.json next to it.

        Errors call it ``where``, or by its path. The last tokenizer of the process is built once,
        because Gemma's takes seconds.

        Raises:
            BadInput: the file is missing or isn't a usable tokenizer (see the constructor).
        """
        folder, where = Path(path).parent, where or str(path)
        try:
            source = read_file(path, LARGEST_TOKENIZER).decode()
            neighbours = [folder / name for name in FILES if (folder / name).is_file()]
            content = (where, source, {file: read_file(file) for file in neighbours})
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{where}: can't read this tokenizer ({error})") from None
        last = cls._last  # another thread may replace it meanwhile
        if last is None or last[0] != content:
            last = cls._last = content, cls(source, where=where, folder=folder)
        return last[1]

    def save(self, path: str | Path) -> None:
        """Write the ``tokenizer.json`` that this tokenizer was made from, byte for byte.

        Raises:
            BadInput: the disk is full or the path can't be written.
        """
        write_atomically(Path(path), self._source.encode())

    def encode(self, text: str) -> list[int]:
        """Return the ids of ``text``. None of them is a special id.

        A character that the vocabulary can't spell (``spelled``) becomes U+FFFD.
        """
        return self.encode_batch([text])[0]

    def encode_further(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of a text that continues another one. With ``specials``, those too."""
        texts = [self.joint, self.joint + text]
        before, longer = (
            (encoding.ids for encoding in self.encode_with_specials(texts))
            if specials
            else self.encode_batch(texts)
        )
        return list(longer[len(before) :])

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, using all cores.

        The caller may set ``TOKENIZERS_PARALLELISM`` and ``RAYON_NUM_THREADS``. A lone surrogate
        becomes U+FFFD.
        """
        cut = [pieces(text) if self._may_cut else [text] for text in texts]
        flat = [piece for document in cut for piece in document]
        encoded = iter(self._encode(self._plain.encode_batch_fast, flat))
        return [[i for _ in document for i in next(encoded).ids] for document in cut]

    def spelled(self, text: str) -> str:
        """Return ``text`` with U+FFFD for characters that the vocabulary can't spell.

        These are control characters, and places of Unicode without a character, of which SmolLM2's
        vocabulary lacks a byte. Most vocabularies lack none.
        """
        return text if self._unspelled is None else self._unspelled.sub(REPLACEMENT, text)

    def replaced(self) -> ReplacedCharacters:
        """Return a new count of the characters that become U+FFFD (``spelled``)."""
        return ReplacedCharacters(self._unspelled)

    def start_document(self, ids: Sequence[int]) -> list[int]:
        """Return the ids of a document's text as training sees them: after ``first``, if any."""
        return list(ids) if self.first is None else [self.first, *ids]

    @property
    def before_document(self) -> int:
        """The id from which a document's first token is predicted: ``first``, or the separator."""
        return self.end_of_text if self.first is None else self.first

    def prompt(self, text: str) -> list[int]:
        """Return the ids of a text to continue, at least one: the start of a document."""
        return self.start_document(self.encode(text)) or [self.end_of_text]

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
        results = []
        encoded = self._encode(self._plain.encode_batch, list(texts))
        for encoding, start in zip(encoded, starts, strict=True):
            ids = encoding.ids
            before = encoding.char_to_token(start)  # None if the text has no such character
            if before is None:
                before = len(ids)
            elif (span := encoding.token_to_chars(before)) and span[0] < start:
                before += 1
            results.append((ids, before))
        return results

    def encode_with_specials(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Encode texts in which special tokens give their special ids, using all cores.

        Only a chat template may write such a text; see ``encode_with_offsets`` for the offsets.
        """
        return self._encode(self._with_specials.encode_batch, list(texts))

    @cached_property
    def _with_specials(self) -> tokenizers.Tokenizer:  # most jobs never need this copy
        return build(
            parse(self._source, self._where) | _UNCHANGED | {"post_processor": None}, self._where
        )

    def decode(self, ids: Sequence[int], *, specials: bool = False) -> str:
        """Return the text of ``ids``, without special tokens unless ``specials``.

        An incomplete UTF-8 sequence becomes U+FFFD.
        """
        if self._pieces:  # the library makes U+FFFD of whole characters next to incomplete ones
            data = b"".join(self.bytes_of(int(i), specials=specials) for i in ids)
            return data.decode(errors="replace").removeprefix(" " if self.strips else "")
        with library(self._where):
            text: str = self._plain.decode([int(i) for i in ids], skip_special_tokens=not specials)
        return text

    def bytes_of(self, token: int, *, specials: bool = False) -> bytes:
        """Return the bytes that an id adds to a decoded text. Of a special token: none, unless
        ``specials``.

        A character may have the bytes of several ids.
        """
        spelling = self._plain.id_to_token(token)
        if spelling is None:  # the model has more rows than the tokenizer has tokens
            return b""
        added = self._added.get(token)
        if added is not None and added.special:
            return spelling.encode() if specials else b""
        if self._pieces:
            return bytes_of_piece(spelling)
        return bytes_of(spelling) if added is None else spelling.encode()

    def token_bytes(self) -> np.ndarray:
        """Return the number of UTF-8 bytes of each id, int32 ``(vocab_size,)``; 0 for specials.

        Summed over the ids of a text, this is the number of bytes in the text, after the
        tokenizer's normalizer if it has one (``normalization``). Bits per byte are relative to this
        sum. NFC makes few texts shorter, and those by little; text that is NFC already keeps its
        bytes. An added token that is not special (Qwen's ``<think>``) counts the bytes of its text.
        """
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        for token, index in self._plain.get_vocab(with_added_tokens=False).items():
            if index < self.vocab_size:
                # The byte alphabet spells each byte as one character.
                lengths[index] = len(bytes_of_piece(token) if self._pieces else token)
        for index in self._added.keys() & range(self.vocab_size):
            lengths[index] = len(self.bytes_of(index))
        return lengths

    def fits(self, model_vocab_size: int, where: str = "tokenizer", fix: str = RESIZE) -> None:
        """Check that a model with ``model_vocab_size`` embedding rows has a row for every id.
        ``fix`` says what to do, with {0} for the rows that are needed.

        Raises:
            BadInput: the model has fewer rows.
        """
        if self.vocab_size > model_vocab_size:
            raise BadInput(
                f"{where}: the tokenizer doesn't fit the model: it produces ids up to "
                f"{self.vocab_size - 1:,}, but the model has {model_vocab_size:,} rows "
                f"(vocab_size). {fix.format(self.vocab_size)}"
            )

    def _encode(
        self, encode_batch: Callable[..., list[tokenizers.Encoding]], texts: list[str]
    ) -> list[tokenizers.Encoding]:
        texts = [self.spelled(text) for text in texts]
        with library(self._where):
            try:
                return encode_batch(texts, add_special_tokens=False)
            except TypeError:  # the library raises this for a lone surrogate
                texts = [SURROGATE.sub(REPLACEMENT, text) for text in texts]
                return encode_batch(texts, add_special_tokens=False)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE whose ids 0 and 1 are end-of-text and pad.

    Byte-level BPE is from Radford et al. 2019, "Language models are unsupervised multitask
    learners". A word of more than ``LONGEST_WORD`` bytes (DNA, a run of one letter) is learned
    from in parts. The result has fewer than ``vocab_size`` entries if the texts have too few
    distinct pairs.

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
            yield SURROGATE.sub(REPLACEMENT, text)

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    parts = tokenizers.pre_tokenizers.FixedLength(LONGEST_WORD)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([_words(), parts])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(watched(), trainer)
    bpe.pre_tokenizer = _words()
    if not seen:
        raise BadInput("tokenizer: the corpus is empty: there is no text to train a tokenizer on.")
    return Tokenizer(bpe.to_str(), where="the tokenizer just trained")


def _words() -> tokenizers.pre_tokenizers.PreTokenizer:
    """Return what cuts a text into words, in which ``train_bpe`` learns pairs."""
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)


def _rows(plain: tokenizers.Tokenizer, special_ids: Mapping[str, int], where: str) -> int:
    """Return how many rows the ids of texts need. Raises BadInput if these are too many."""
    of_media = {number for text, number in special_ids.items() if _OF_MEDIA.search(text)}
    ids = plain.get_vocab(with_added_tokens=True).values()
    largest = max(number for number in ids if number not in of_media)
    if largest >= MOST_IDS:
        raise BadInput(f"{where}: an id is {largest:,}; ids end at {MOST_IDS:,}")
    return largest + 1


def _end_of_text_token(special_ids: dict[str, int], folder: str | Path | None, where: str) -> str:
    for name in END_OF_TEXT_NAMES:
        if name in special_ids:
            return name
    named = token_names(folder).get("eos_token") if folder is not None else None
    if named in special_ids:
        return str(named)
    names = shown(", ".join(special_ids)) if special_ids else "none"
    raise BadInput(
        f"{where}: no end-of-text token: key added_tokens must contain a special token named one "
        f"of {', '.join(END_OF_TEXT_NAMES)}, or the eos_token of the tokenizer_config.json next to "
        f"this file; it contains {names}."
    )

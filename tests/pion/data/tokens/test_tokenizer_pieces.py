"""BPE of pieces: ids, texts and bytes are those of the library, for Gemma's, Llama 2's and
Mistral's layouts."""

import json
from functools import cache

import pytest
import tokenizers

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.formats.gguf.vocabulary import pre_tokenizer
from pion.generation.text_stream import TextStream
from tests.support.tokenizer_kinds import PIECES, settings_of, tokenizer_of, write_files, write_json

ODD = (
    *(
        "the number of items",
        "a  b   c ",
        "\ta\n\n\n\nb",
        "a\r\nb",
        "👩‍👩‍👧 🦊",
        "e\u0301\u0301 कि",
    ),
    *("漢字 かな", "\x00\x01\x7f", "<eos></s> <0x41>", "\n", "\U00012345 don't 1234"),
)
made = cache(tokenizer_of)


def bytes_of(tokenizer, ids):
    return b"".join(map(tokenizer.bytes_of, ids))


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("kind", PIECES)
def test_ids_are_the_librarys_and_bytes_and_streams_give_the_text_back(kind, text):
    tokenizer = made(kind)
    library = tokenizers.Tokenizer.from_str(json.dumps(settings_of(kind)))
    library.encode_special_tokens = True
    ids = tokenizer.encode(text)
    assert ids == library.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text == library.decode(ids)
    spaced = b" " * tokenizer.strips + text.encode()
    assert bytes_of(tokenizer, ids) == spaced
    assert tokenizer.token_bytes()[ids].sum() == len(spaced)
    stream = TextStream(tokenizer)
    assert "".join([*(stream.push(i).text for i in ids), stream.end().text]) == text
    assert bytes_of(tokenizer, tokenizer.encode_further(text)) == text.encode()


def test_a_continuation_keeps_its_space_and_half_a_character_spoils_no_other():
    tokenizer = made("llama2")
    ids = tokenizer.encode("the 🦊🦊")
    assert TextStream(tokenizer, continues=True).push(ids[0]).text[0] == " "
    assert tokenizer.decode(ids[:-1]) == "the 🦊\ufffd"


def test_a_token_of_images_has_no_row_and_the_post_processor_gives_way(tmp_path):
    gemma = Tokenizer.from_file(write_files("gemma", tmp_path) / "tokenizer.json")
    image = gemma.special_ids["<image_soft_token>"]
    assert (gemma.vocab_size, len(gemma.token_bytes())) == (image, image)
    assert gemma.first == gemma.special_ids["<bos>"]
    write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": False})
    assert Tokenizer.from_file(tmp_path / "tokenizer.json").first is None


def test_a_missing_byte_is_named_and_gguf_refuses_pieces():
    settings = settings_of("gemma")
    with pytest.raises(BadInput, match=r"key model\.byte_fallback is set"):
        pre_tokenizer(settings)
    del settings["model"]["vocab"]["<0x41>"]
    with pytest.raises(BadInput, match=r"lacks 1 of the 256 bytes \(41\)"):
        Tokenizer(json.dumps(settings), "x")

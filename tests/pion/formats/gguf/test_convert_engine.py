"""GGUF files in llama.cpp itself give our logits and our ids.

Only `-m soak` runs these tests: the engine is no Python package. It has 725 MB, and comes from npm,
already built. What it does with a file, nothing else here can show.
"""

import argparse
import math
import typing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pion.data.chat.chat_format import ChatFormat
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.formats.export import export_model
from pion.formats.gguf.convert import convert
from pion.formats.huggingface.tokenizer_files import exported_tokenizer
from pion.model.decoder import Decoder
from tests.support.finished_run import tiny_model, tiny_tokenizer
from tests.support.gguf_models import EXPRESSIBLE, expressible
from tests.support.llama_engine import run_engine
from tests.support.odd_texts import odd_texts
from tests.support.stock_models import tokens
from tests.support.tokenizer_kinds import write_files

pytestmark = pytest.mark.soak

SEQ_LEN = 128
EXPERTS = {"n": 8, "d_shared": 64}


@dataclass(frozen=True)
class Trained:
    """A model that has learned a little, its export, and text that it has not seen."""

    model: Decoder
    tokenizer: Tokenizer
    export: Path
    text: str

    @property
    def ids(self):
        """Rows of the text's ids (rows, SEQ_LEN)."""
        ids = torch.tensor(self.tokenizer.encode(self.text))
        return ids[: len(ids) // SEQ_LEN * SEQ_LEN].view(-1, SEQ_LEN)

    def logits(self):
        """Return our logits of all rows (rows * SEQ_LEN, vocab_size)."""
        with torch.inference_mode():
            found = self.model(self.ids)[..., : self.tokenizer.vocab_size]
        return found.flatten(0, 1).float().numpy()

    def engine_logits(self, path, kind, cache):
        """Return llama.cpp's logits in a file of this type, as `logits`."""
        convert(self.export, path, kind, name="trained")
        found, _ = run_engine(path, rows=self.ids.tolist(), cache=cache)
        return np.concatenate(found)

    def bits_per_byte(self, logits):
        """Return the bits per byte of the rows, but their first tokens."""
        rows = torch.from_numpy(logits).view(*self.ids.shape, -1)
        targets = self.ids[:, 1:].flatten()
        nats = cross_entropy(rows[:, :-1].flatten(0, 1), targets, reduction="sum")
        return float(nats) / math.log(2) / int(self.tokenizer.token_bytes()[targets.numpy()].sum())


def trained(folder, **changes):
    """Train a small model on some of the standard library for a few seconds."""
    text = "".join(Path(module.__file__).read_text() for module in (argparse, typing))
    tokenizer = train_bpe([text], 512)
    shape = {"d_model": 128, "n_layers": 4, "d_ff": 256, **changes}
    model = tiny_model(tokenizer.vocab_size, seq_len=SEQ_LEN, **shape)
    ids = torch.tensor(tokenizer.encode(text[: len(text) * 9 // 10]))
    steps = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        starts = torch.randint(0, len(ids) - SEQ_LEN - 1, (8,), generator=generator)
        rows = torch.stack([ids[start : start + SEQ_LEN + 1] for start in starts])
        cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        steps.step()
        steps.zero_grad()
    tokenizer.save(folder / "tokenizer.json")
    export_model(model, folder / "tokenizer.json", folder / "export")
    return Trained(model.eval(), tokenizer, folder / "export", text[len(text) * 9 // 10 :][:3000])


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def tachyon(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("tachyon"), d_ff=64, experts=EXPERTS)


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_f32_gives_our_logits_at_every_position(name, tmp_path):
    model, folder = expressible(name, tmp_path)
    convert(folder, tmp_path / "model.gguf", "f32", name="tiny")
    vocab_size = tiny_tokenizer().vocab_size
    ids = tokens(100, vocab_size=vocab_size)
    (found,), _ = run_engine(tmp_path / "model.gguf", rows=ids.tolist())
    with torch.inference_mode():
        ours = model(ids)[0, :, :vocab_size].numpy()
    apart = np.abs(found - ours).max()
    print(f"{name}, f32: logits differ by at most {apart:.1e}")
    assert apart <= 1e-3


@pytest.mark.parametrize("name", ["dense", "tachyon"])
def test_trained_models_in_f32_f16_and_q8_0(name, request, tmp_path):
    model = request.getfixturevalue(name)
    ours = model.logits()
    bits = model.bits_per_byte(ours)
    apart, of_ours = {}, {}
    for kind, cache in (("f32", "F32"), ("f16", "F16"), ("q8_0", "F16")):
        found = model.engine_logits(tmp_path / f"{kind}.gguf", kind, cache)
        apart[kind] = np.abs(found - ours).max(axis=1)
        of_ours[kind] = model.bits_per_byte(found) / bits
        print(
            f"{name}, {kind}: logits differ by at most {apart[kind].max():.1e}, at 99 % of "
            f"positions by {np.quantile(apart[kind], 0.99):.1e}; {bits:.3f} bits per byte, times "
            f"{of_ours[kind]:.5f} in llama.cpp"
        )
    assert apart["f32"].max() <= 1e-3
    if name == "dense":
        assert apart["f16"].max() <= 0.01
    # Another rounding can change which experts a token gets.
    assert np.mean(apart["f16"] <= 0.02) >= 0.99
    assert abs(of_ours["q8_0"] - 1) <= 0.01


@pytest.mark.parametrize("kind", ["gpt2", "smollm2", "llama3", "deepseek"])
def test_every_text_has_our_ids(kind, tmp_path):
    path = write_files(kind, tmp_path / "files") / "tokenizer.json"
    tokenizer = Tokenizer.from_file(path)
    model = tiny_model(tokenizer.vocab_size + 3, imported=True)
    export_model(model, exported_tokenizer(path, imported=True), tmp_path / "export")
    convert(tmp_path / "export", tmp_path / "model.gguf", "f32", name=kind)
    texts = odd_texts(tokenizer.specials)
    _, found = run_engine(tmp_path / "model.gguf", texts=texts)
    assert len(texts) >= 600
    assert [text for text, ids in zip(texts, found) if ids != tokenizer.encode(text)] == []


def test_a_chat_has_our_ids(dense, tmp_path):
    """The template in the file writes special tokens, and llama.cpp finds them in its text."""
    from transformers import AutoTokenizer

    convert(dense.export, tmp_path / "model.gguf", "f32", name="chat")
    messages = [
        {"role": "system", "content": "Be brief. <|endoftext|>"},
        {"role": "user", "content": "What does str.split do?\n"},
        {"role": "assistant", "content": "It splits."},
        {"role": "user", "content": "Why?"},
    ]
    template = AutoTokenizer.from_pretrained(dense.export)
    text = template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    _, (found,) = run_engine(tmp_path / "model.gguf", texts=[text], specials=True)
    chat = ChatFormat(dense.export / "tokenizer.json", dense.tokenizer)
    assert found == chat.prompt_ids(messages)

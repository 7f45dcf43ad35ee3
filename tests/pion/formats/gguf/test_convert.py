"""A GGUF file has the exported model: its values, its shape and its tokenizer."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from pion.errors import BadInput, PionError
from pion.formats.gguf import convert as module
from pion.formats.gguf.convert import TYPES, convert, encoded, stored_bytes, worst
from tests.support.finished_run import tiny_tokenizer
from tests.support.gguf_models import EXPRESSIBLE, exported, expressible, random_model
from tests.support.stock_models import tokens

# transformers reads GGUF files too, but has no Arcee there and leaves out scaled positions.
READ_BY_TRANSFORMERS = ("pion", "wide heads", "untied", "tachyon", "llama", "qwen2")


def entries_of(path):
    return {key: field.contents() for key, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("name", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model_from_the_file(name, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    model, folder = expressible(name, tmp_path)
    architecture = EXPRESSIBLE[name][0]
    assert convert(folder, tmp_path / "model.gguf", "f32", name="tiny").architecture == architecture
    # transformers does not read the width of a Qwen3's heads.
    known = {"config": AutoConfig.from_pretrained(folder)} if "qwen3" in architecture else {}
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, **known
    ).eval()
    ids = tokens(40, vocab_size=tiny_tokenizer().vocab_size)
    with torch.inference_mode():
        ours = model(ids)[..., : tiny_tokenizer().vocab_size]
        assert (ours - theirs(ids).logits).abs().max() < 1e-4


def test_the_file_says_how_to_talk_to_the_model(tmp_path):
    folder = exported(random_model(tiny_tokenizer().vocab_size), tmp_path / "export")
    convert(folder, tmp_path / "model.gguf", "f16", name="demo (sft, step 5)")
    entries = entries_of(tmp_path / "model.gguf")
    assert entries["general.name"] == "demo (sft, step 5)"
    assert entries["qwen3.context_length"] == 128
    assert entries["tokenizer.ggml.pre"] == "gpt-2"
    assert entries["tokenizer.ggml.add_bos_token"] is False
    assert entries["tokenizer.ggml.eos_token_id"] == 0
    assert entries["tokenizer.ggml.padding_token_id"] == 1
    assert entries["tokenizer.chat_template"] == (folder / "chat_template.jinja").read_text()
    sampling = {k: v for k, v in entries.items() if k.startswith("general.sampling.")}
    # llama.cpp's own min_p is 0.05, and the model was not sampled with one.
    assert sampling == pytest.approx(
        {
            "general.sampling.temp": 0.8,
            "general.sampling.top_k": 50,
            "general.sampling.top_p": 0.9,
            "general.sampling.min_p": 0.0,
            "general.sampling.penalty_repeat": 1.0,
        }
    )


def test_rows_that_have_no_whole_blocks_stay_f16_in_q8_0(tmp_path):
    model, folder = expressible("pion", tmp_path)
    assert model.config.d_ff % 32
    converted = convert(folder, tmp_path / "model.gguf", "q8_0", name="tiny")
    assert converted.kept_f16 == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"


def test_a_router_is_never_rounded(tmp_path):
    _, folder = expressible("tachyon", tmp_path)
    convert(folder, tmp_path / "model.gguf", "q8_0", name="tiny")
    types = {t.name: t.tensor_type.name for t in GGUFReader(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_gate_inp.weight"] == "F32"
    assert types["blk.0.ffn_up_exps.weight"] == "Q8_0"


def test_a_file_with_other_values_never_gets_its_name(tmp_path, monkeypatch):
    _, folder = expressible("pion", tmp_path)
    out = tmp_path / "model.gguf"
    convert(folder, out, "f16", name="first")
    before = out.read_bytes()
    encode = module.encoded

    def flipped(values, kind):
        return -encode(values, kind) if values.shape == (48, 32) else encode(values, kind)

    monkeypatch.setattr(module, "encoded", flipped)
    with pytest.raises(PionError, match=r"tensor blk\.0\.ffn_gate\.weight is .* times as far"):
        convert(folder, out, "f16", name="second")
    assert out.read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


def test_weights_beyond_f16_are_not_written_as_infinite(tmp_path):
    model = random_model(tiny_tokenizer().vocab_size)
    with torch.no_grad():
        model.blocks[0].attention.q_proj.weight[0, 0] = 1e6
    folder = exported(model, tmp_path / "export")
    with pytest.raises(PionError, match="With --type f32 nothing is rounded"):
        convert(folder, tmp_path / "model.gguf", "f16", name="tiny")
    assert convert(folder, tmp_path / "model.gguf", "f32", name="tiny").tensors == 24


def test_a_file_that_is_no_gguf_file_is_left_alone(tmp_path):
    _, folder = expressible("pion", tmp_path)
    out = tmp_path / "notes.gguf"
    out.write_text("my notes")
    with pytest.raises(BadInput, match=r"not a GGUF file\. Nothing was changed"):
        convert(folder, out, "f16", name="tiny")
    assert out.read_text() == "my notes"


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    _, folder = expressible("pion", tmp_path)
    (tmp_path / ".model.gguf.partial").symlink_to("/dev/full")
    with pytest.raises(BadInput, match=r"can't write the GGUF file .* The model is safe"):
        convert(folder, tmp_path / "model.gguf", "f16", name="tiny")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "tokenizer.json"]


# ---------------------------------------------------------------- rounding

VALUES = np.random.default_rng(0).normal(0, 0.02, (64, 96)).astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4])
def test_honest_rounding_is_within_bounds(kind, scale):
    values = VALUES * np.float32(scale)
    stored = encoded(values, kind)
    assert worst(values, stored, kind) <= 1
    assert stored.nbytes == stored_bytes(values.shape, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_one_wrong_weight_is_found(kind):
    other = VALUES.copy()
    other[3, 5] *= 1.02 if kind != "q8_0" else 0
    other[3, 5] += 0.001 if kind == "q8_0" else 0
    assert worst(VALUES, encoded(other, kind), kind) > 1


@pytest.mark.parametrize("kind", TYPES)
def test_not_a_number_is_never_within_bounds(kind):
    stored = encoded(VALUES, kind).copy()  # of fp32, it is VALUES itself
    stored.view(np.uint8).reshape(-1)[:4] = 0xFF  # NaN in each type
    assert not worst(VALUES, stored, kind) <= 1

"""Packed ternary banks: small, exact, and refused if damaged."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import pion
from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.formats.export import export_model
from pion.formats.load import packed
from pion.formats.seeds import import_seed
from pion.formats.weights import write_safetensors
from pion.model.decoder import Decoder
from pion.model.pilon.ternary import pack_trits, unpack_trits
from tests.families.families import FAMILIES
from tests.paths import SEEDS

TOKENS = torch.arange(80).view(2, 40)


def model_of(**primitives):
    model = FAMILIES["ternary"].decoder()
    config = replace(model.config, primitives=replace(model.config.primitives, **primitives))
    return Decoder.from_state(config, model.state_dict())


def repacked(model):
    config, state = packed(model.config, model.state_dict())
    return Decoder.from_state(ModelConfig.from_dict(config.to_dict()), state)


@torch.no_grad()
def logits(model):
    return model(TOKENS)


# ---------------------------------------------------------------- trits


@pytest.mark.parametrize("count", [1, 4, 5, 6, 243])
def test_trits_come_back_from_their_bytes(count):
    trits = torch.randint(-1, 2, (count,), generator=torch.Generator().manual_seed(count))
    data = pack_trits(trits)
    assert len(data) == -(-count // 5)
    assert torch.equal(unpack_trits(data, (count,)), trits.to(torch.int8))


def test_a_byte_is_the_sum_of_powers_of_three():
    assert pack_trits(torch.tensor([1, 0, -1, 1, 0])).tolist() == [2 + 3 + 0 + 2 * 27 + 81]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([243, 121], "a byte above 242"),
        ([121], "7 trits take 2 bytes, not 1"),
        ([121, 121, 121], "7 trits take 2 bytes, not 3"),
        ([121, 242], "the last byte holds more trits"),
    ],
)
def test_damaged_trits_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        unpack_trits(torch.tensor(data, dtype=torch.uint8), (7,))


# ---------------------------------------------------------------- models


def test_unused_primitives_are_left_out_and_keep_their_numbers():
    model = model_of(top_k=2)
    again = repacked(model)
    assert again.config.primitives.stored == ((2, 2), (2, 2))
    (banks,) = model.shared_parts()
    used = banks.recipes(model.blocks)[0, 0].topk(2).indices.sort().values
    assert torch.equal(again.state_dict()["bands.0.up.numbers"], used)
    assert torch.equal(logits(again), logits(model))


def test_the_banks_take_at_most_1_65_bits_a_weight():
    config = ModelConfig.preset("pilon-48m", vocab_size=512, n_layers=2, primitives={
        "n": 12, "rank": 48, "top_k": 12, "bands": [[0], [1]], "ternary": True,
        "activation_bits": 8, "sub_norm": True,
    })  # fmt: skip
    model = Decoder(config)
    _, state = packed(config, model.state_dict())
    weights = sum(p.numel() for name, p in model.named_parameters() if name.endswith(".factors"))
    parts = (".packed", ".scales", ".numbers")
    size = sum(t.numel() * t.element_size() for name, t in state.items() if name.endswith(parts))
    assert 8 * size / weights <= 1.65


def test_a_model_whose_scales_depend_on_recipes_is_packed_layer_by_layer():
    model = import_seed(SEEDS / "pilon_ternary_ckpt.pt")
    again = repacked(model)
    assert again.config.primitives.bands == ((0,), (1,), (2,), (3,))
    assert torch.equal(logits(again), logits(model))


def test_a_model_without_ternary_banks_stays_as_it_is():
    model = FAMILIES["pion"].decoder()
    config, state = packed(model.config, model.state_dict())
    assert config == model.config
    assert state.keys() == model.state_dict().keys()


# ---------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("packed")
    train_bpe(["some words"], 300).save(where / "tokenizer.json")
    export_model(FAMILIES["ternary"].decoder(), where / "tokenizer.json", where / "model")
    return where / "model"


def test_a_published_folder_is_packed_and_exact(folder):
    tensors = load_file(folder / "model.safetensors")
    assert tensors["decoder.bands.0.up.packed"].dtype == torch.uint8
    assert not any(name.endswith(".factors") for name in tensors)
    again, _ = pion.load(folder)
    whole = FAMILIES["ternary"].decoder()
    with torch.no_grad():
        expected = whole.logits(whole.hidden(TOKENS), vocab_size=again.config.vocab_size)
    assert torch.equal(logits(again), expected)


def change(folder, out, name, tensor):
    out.mkdir()
    for file in ("config.json", "tokenizer.json"):
        (out / file).write_bytes((folder / file).read_bytes())
    tensors = load_file(folder / "model.safetensors") | {name: tensor}
    write_safetensors(out / "model.safetensors", tensors, {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("part", "damage", "message"),
    [
        ("packed", lambda t: t.clone().fill_(250), "holds a value that is no trit"),
        ("packed", lambda t: t[:-1], "has shape"),
        ("packed", lambda t: t.float(), "not an array of torch.uint8, but torch.float32"),
        ("numbers", lambda t: t.int(), "not an array of torch.int64, but torch.int32"),
        ("numbers", lambda t: t.flip(0), "rising numbers"),
        ("numbers", lambda t: t + 8, "rising numbers"),
        ("scales", lambda t: t * float("nan"), "a scale is not finite"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder, tmp_path, part, damage, message):
    name = f"decoder.bands.1.down.{part}"
    tensor = load_file(folder / "model.safetensors")[name]
    bad = change(folder, tmp_path / "bad", name, damage(tensor))
    with pytest.raises(BadInput) as refusal:
        pion.load(bad)
    assert message in str(refusal.value)
    assert f"bands.1.down.{part}" in str(refusal.value)

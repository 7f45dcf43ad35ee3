"""Adapter folders: peft loads ours, we load peft's, and both compute and train the same."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.config.lora import Adapter, Lora
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.formats.export import export_model
from pion.formats.load import identify, load_adapter, load_decoder, load_lazily
from pion.formats.peft_folder import write_adapter_folder
from pion.formats.target_folder import is_export
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora, additions, merge
from pion.model.saved_weights import Tensors
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import open_stream
from tests.support.tiny_config import drawn, tiny_config

LORA = Lora(rank=4, alpha=8)
CONFIG = tiny_config(vocab_size=280, heads={"qk_norm": False, "qkv_bias": True}, imported=True)
TOKENS = torch.arange(40).view(2, 20) * 5 % 280
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 20


def export(folder, config=CONFIG):
    tokenizer = folder / "tokenizer.json"
    train_bpe(["the quick brown fox " * 9], config.vocab_size).save(tokenizer)
    export_model(drawn(config), tokenizer, folder / "base")
    return folder / "base"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return export(tmp_path_factory.mktemp("exported"))


def adapted(folder, base):
    whole = load_lazily(base)
    config, saved = load_adapter(folder, whole, whole)
    return Decoder.from_state(config, dict(Tensors(saved)))


def trained(base):
    """Return the base with additions that are not 0."""
    model = load_decoder(base)
    add_lora(model, LORA, seed=1)
    torch.manual_seed(2)
    for tensor in additions(model).values():
        tensor.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def ours(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours")
    model = trained(base)
    adapter = Adapter(LORA, identify(load_decoder(base), str(base)))
    write_adapter_folder(folder, model.config, adapter, additions(model))
    return folder


def with_peft(base, **settings):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    fields = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM"}
    return get_peft_model(stock, LoraConfig(**fields | settings))


@pytest.fixture(scope="module")
def theirs(base, tmp_path_factory):
    """Return an adapter folder that peft wrote, and its logits."""
    folder = tmp_path_factory.mktemp("theirs")
    model = with_peft(base)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
        logits = model(TOKENS).logits
    model.save_pretrained(folder)
    return folder, logits


@pytest.fixture
def copy(theirs, tmp_path):
    return Path(shutil.copytree(theirs[0], tmp_path / "copy"))


# ---------------------------------------------------------------- both ways


def test_peft_loads_our_folder_on_the_stock_class_and_computes_our_logits(base, ours):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(stock, ours)
    model = trained(base)
    with torch.no_grad():
        expected, found = merge(model)(TOKENS), loaded(TOKENS).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert float((found - load_decoder(base)(TOKENS)).abs().max()) > 0.01
    assert loaded.peft_config["default"].base_model_name_or_path == str(base)
    assert is_export(ours)


def test_we_load_pefts_folder_and_compute_its_logits(base, theirs):
    folder, logits = theirs
    with torch.no_grad():
        found = adapted(folder, base)(TOKENS)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)


def test_our_folder_is_read_back_bit_for_bit(base, ours):
    expected = merge(trained(base)).state_dict()
    found = adapted(ours, base).state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_adapter_alone_is_no_model(ours):
    with pytest.raises(BadInput, match="can only be loaded with its base"):
        load_decoder(ours)


def test_a_model_without_a_stock_class_has_no_adapter_folder(tmp_path):
    config = tiny_config(softcap=30.0)
    model = Decoder(config)
    add_lora(model, LORA, seed=0)
    adapter = Adapter(LORA, identify(Decoder(config), "base"))
    with pytest.raises(BadInput, match="so peft can't load an adapter"):
        write_adapter_folder(tmp_path, config, adapter, additions(model))


# ---------------------------------------------------------------- training


def pefts_losses(base, stream, a):
    """Return the losses of plain training with peft and torch's AdamW, from our A."""
    model = with_peft(base)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parts = name.split(".layers.")[1].split(".")
            part = {"self_attn": "attention", "mlp": "feedforward"}[parts[1]]
            parameter.data.copy_(a[f"blocks.{parts[0]}.{part}.{parts[2]}.lora_a"])
    learned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        batch = stream.batch(range(4 * step, 4 * step + 4))
        logits = model(batch.tokens).logits.flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, batch.targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def our_losses(base, stream):
    """Return our losses, and the A that they begin with."""
    model = load_decoder(base)
    add_lora(model, LORA, seed=1)
    a = {name: tensor.clone() for name, tensor in additions(model).items()}
    settings = TrainSettings(
        steps=STEPS, global_batch=4, lr=1e-2, schedule="constant", weight_decay=0.0
    )
    trainer = Trainer(model, stream, settings, ComputePlan(micro_batch=2, threads=1))
    for _ in range(STEPS):
        trainer.train_step()
    losses = [row["loss"] for row in trainer.drain_metrics()]
    trainer.close()
    return losses, a


def test_twenty_losses_are_pefts(base, tmp_path):
    stream = open_stream(tmp_path, rows=100, config=CONFIG)
    ours, a = our_losses(base, stream)
    theirs = pefts_losses(base, stream, a)
    assert ours[-1] < ours[0] - 0.1
    assert ours == pytest.approx(theirs, abs=1e-4)


# ---------------------------------------------------------------- untrusted folders


def refusal(folder, base):
    with pytest.raises(BadInput) as refused:
        adapted(folder, base)
    assert str(folder) in str(refused.value)
    return str(refused.value)


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; only 'LORA' is read"),
        ({"use_dora": True}, "'use_dora' is True, which Pion can't compute"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is ['lm_head']"),
        ({"bias": "all"}, "bias is 'all'; only 'none' is read"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"invented": 1}, "'invented' is 1, which Pion can't compute"),
        ({"r": 0}, "rank: 0 must be a whole number of at least 1"),
        ({"r": 3}, "lora_a has shape (4, 48); the settings of LoRA need (3, 48)"),
        ({"r": "4"}, "both must be numbers"),
        ({"lora_alpha": -1}, "alpha: -1.0 must be a finite number above 0"),
        ({"base_model_name_or_path": 5}, "it must name the base"),
        ({"revision": 5}, "revision is 5; it must be text"),
    ],
)
def test_settings_that_we_cannot_compute_are_refused(copy, base, fields, told):
    change_config(copy, **fields)
    assert told in refusal(copy, base)


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop(FIRST), "there is no tensor 'blocks.0.attention.q_proj.lora_a' of LoRA"),
        (lambda t: t.update({"x" * 9999: t[FIRST].clone()}), "unexpected tensor 'xxx"),
        (
            lambda t: t.update({FIRST.replace("layers.0", "layers.7"): t[FIRST].clone()}),
            "the base has no such projection",
        ),
        (
            lambda t: t.update({FIRST.replace("self_attn.q_proj", "lm_head"): t[FIRST].clone()}),
            "no projection 'lm_head'",
        ),
        (lambda t: t.update({FIRST: t[FIRST].T.contiguous()}), "has shape (32, 4)"),
        (lambda t: t.update({FIRST: t[FIRST] * float("nan")}), "numbers that are not finite"),
        (lambda t: t.clear(), "must be all-linear or a list of names"),
    ],
)
def test_tensors_that_are_not_the_settings_are_refused(copy, base, change, told):
    change_tensors(copy, change)
    message = refusal(copy, base)
    assert told in message
    assert len(message) < 1000


def test_a_pickle_is_never_read(copy, base):
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    assert "is a pickle, which could run any code, so it was not read" in refusal(copy, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_or_damaged_file_is_named(copy, base, name):
    (copy / name).write_bytes(b"{")
    assert name in refusal(copy, base)
    (copy / name).unlink()
    assert name in refusal(copy, base)


def test_another_base_than_the_recorded_one_is_refused(ours, tmp_path, base):
    message = refusal(ours, export(tmp_path, dataclasses.replace(CONFIG, init_std=0.1)))
    assert f"is an adapter of {base} with the tensors" in message
    assert "Bring back the base that the adapter was trained on" in message


def test_a_record_that_contradicts_pefts_settings_is_refused(ours, tmp_path, base):
    folder = Path(shutil.copytree(ours, tmp_path / "copy"))
    change_config(folder, lora_alpha=9)
    assert "adapter.json has rank 4 and alpha 8, but adapter_config.json has 4 and 9" in refusal(
        folder, base
    )

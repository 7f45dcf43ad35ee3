"""Which architecture a model is exported as, and that transformers' own class computes the same.

test_core.py begins with models of transformers. Here the models are Pion's.
"""

import re
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.config.parts import Experts, Heads, Windows
from pion.errors import BadInput
from pion.formats.huggingface.architectures import (
    architecture_of,
    config_from_transformers,
    from_transformers,
    nearest_misfit,
    to_transformers,
)
from pion.formats.load import load_decoder
from pion.model.decoder import Decoder
from tests.support.capped_models import DENSE, EXPERTS, MIXED, MODELS, scrambled
from tests.support.stock_models import apart, randomize, stock_model, tokens
from tests.support.tiny_config import tiny_config

TOKENS = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(1))
QWEN3 = tiny_config(n_heads=6, head_dim=8, vocab_size=61, init_std=0.2)
PLAIN = {"heads": {"qk_norm": False}, "tie_embeddings": False}
SCALED = {"factor": 8.0, "original_max_position_embeddings": 32}
BANKS = {"n": 6, "rank": 4, "top_k": 3, "bands": [[0, 1]]}


def moe(shared):
    return tiny_config(vocab_size=61, experts=Experts(n=5, top_k=2, shared=shared, d_shared=24))


def qwen3(heads, kv_heads, head_dim, theta, *, tied):
    shape = {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": head_dim}
    return replace(QWEN3, **shape, rope_theta=theta, tie_embeddings=tied)


# By name: the model type, and a model of which the stock class computes the logits.
STOCK = {
    "qwen3": ("qwen3", qwen3(6, 2, 8, 1e4, tied=True)),
    "qwen3, untied": ("qwen3", qwen3(6, 2, 8, 1e6, tied=False)),
    "qwen3, wide heads": ("qwen3", qwen3(6, 2, 16, 1e4, tied=False)),
    "qwen3, a key for each head": ("qwen3", qwen3(4, 4, 8, 1e6, tied=True)),
    "qwen3, one key": ("qwen3", qwen3(4, 1, 8, 1e4, tied=True)),
    "qwen3, ten heads": ("qwen3", qwen3(10, 2, 8, 1e6, tied=False)),
    **{f"experts, {shared} shared": ("qwen3_moe", moe(shared)) for shared in range(3)},
    "relu2": ("arcee", tiny_config(**PLAIN, activation="relu2")),
    "gelu, tied": ("arcee", tiny_config(heads=PLAIN["heads"], activation="gelu")),
    "primitives": ("arcee", tiny_config(**PLAIN, activation="gelu", primitives=BANKS)),
    "primitives, all": (
        "arcee", tiny_config(**PLAIN, activation="relu2", primitives=BANKS | {"top_k": 6}),
    ),
}  # fmt: skip


def fused(hf_state):
    """Return the tensors with the experts of a layer in one, as transformers keeps them."""
    found, experts = {}, defaultdict(list)
    for name, tensor in hf_state.items():
        if place := re.fullmatch(r"(.*\.experts)\.\d+\.(\w+)\.weight", name):
            experts[place[1], place[2]].append(tensor)
        else:
            found[name] = tensor
    for (layer, matrix), every in experts.items():
        if matrix == "gate_proj":
            both = torch.stack(every), torch.stack(experts[layer, "up_proj"])
            found[f"{layer}.gate_up_proj"] = torch.cat(both, dim=1)
        elif matrix == "down_proj":
            found[f"{layer}.down_proj"] = torch.stack(every)
    return found


def stock(hf_config, hf_state):
    import transformers

    (name,) = hf_config["architectures"]
    config = getattr(transformers, name.replace("ForCausalLM", "Config"))(**hf_config)
    model = getattr(transformers, name)(config).eval()
    loaded = model.load_state_dict(fused(hf_state), strict=False)
    assert loaded.missing_keys == (["lm_head.weight"] if config.tie_word_embeddings else [])
    assert not loaded.unexpected_keys
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", STOCK)
@torch.inference_mode()
def test_the_logits_are_those_of_transformers_own_class(name):
    model_type, config = STOCK[name]
    ours = scrambled(config)
    assert architecture_of(config).model_type == model_type
    theirs = stock(*to_transformers(config, ours.state_dict()))
    assert (ours(TOKENS) - theirs(TOKENS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("name", STOCK)
@torch.inference_mode()
def test_what_is_read_back_computes_the_same(name):
    ours = scrambled(STOCK[name][1])
    config, state = from_transformers(*to_transformers(ours.config, ours.state_dict()))
    assert (Decoder.from_state(config, state)(TOKENS) - ours(TOKENS)).abs().max() <= 1e-5
    if ours.config.primitives is not None:
        assert config.primitives is None
        assert config.feedforward_bias
        assert state["blocks.0.feedforward.up_bias"].any()
    elif ours.config.experts is not None:  # shared experts are a wider dense part
        assert config.experts == Experts(n=5, shared=0)
        assert config.d_ff == 48 + ours.config.experts.shared * 24
    else:
        assert config == replace(ours.config, imported=True)
        assert state.keys() == ours.state_dict().keys()
        assert all(torch.equal(tensor, state[n]) for n, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "changes"),
    [("relu2", {"mlp_bias": True, "head_dim": None}), ("experts, 0 shared", {})],
)
def test_what_transformers_saved_is_read(name, changes, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = STOCK[name][1]
    hf_config, _ = to_transformers(config, scrambled(config).state_dict())
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf_config | changes)).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    assert apart(load_decoder(tmp_path), theirs, TOKENS) <= 1e-5


# ---------------------------------------------------------------- which one is taken


@pytest.mark.parametrize(
    ("preset", "name"),
    [
        ("pion-nano", "Qwen3ForCausalLM"),
        ("pion2-nano", "Qwen3ForCausalLM"),
        ("pion2-max-nano", "PionForCausalLM"),
        ("tachyon-tiny", "Qwen3MoeForCausalLM"),
        ("daisy-pico", "PionForCausalLM"),
        ("daisy-350m", "PionForCausalLM"),
        ("pilon-48m", "PionForCausalLM"),
        ("pilon-48m-rope", "ArceeForCausalLM"),
        ("pilon-48m-dense", "PionForCausalLM"),
    ],
)
def test_the_first_architecture_that_fits_is_taken(preset, name):
    assert architecture_of(ModelConfig.preset(preset)).name == name


def test_what_no_stock_architecture_computes_gets_modelling_files():
    for config in MODELS.values():
        assert not architecture_of(config).stock
    assert nearest_misfit(DENSE) == "Qwen3 does not support softcap 1.5"
    assert nearest_misfit(EXPERTS) == "Qwen3Moe does not support softcap 1.5"
    assert nearest_misfit(replace(DENSE, softcap=None)) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("softcap", 30.0),
        ("logit_cap", 15.0),
        ("activation", "relu2"),
        ("activation", "gelu"),
        ("positions", "learned"),
        ("norm_gain", False),
        ("windows", MIXED.windows),
        ("heads", MIXED.heads),
        ("wiring", replace(MIXED.wiring, attention_layers=(0, 1), skips=())),
        ("values", replace(MIXED.values, layers=(0, 1))),
    ],
)
def test_no_setting_that_changes_the_result_is_lost_in_a_stock_architecture(field, value):
    for name, needs in (("qwen3", {}), ("qwen3_moe", {"experts": MIXED.experts})):
        plain = replace(DENSE, softcap=None, **needs)
        assert architecture_of(plain, name).stock
        with pytest.raises(BadInput, match=f"exported as {name}: .* does not support {field}"):
            architecture_of(replace(plain, **{field: value}), name)


def test_an_architecture_can_be_asked_for():
    assert architecture_of(QWEN3, "pion").name == "PionForCausalLM"
    with pytest.raises(BadInput, match="Qwen3Moe does not support a model without experts"):
        architecture_of(QWEN3, "qwen3_moe")
    with pytest.raises(BadInput, match=r"'qwen33'; did you mean 'qwen3'\?; the architectures are"):
        architecture_of(QWEN3, "qwen33")


CONFIGS = {
    "llama": tiny_config(heads={"qk_norm": False}),
    "qwen2": tiny_config(heads={"qk_norm": False, "qkv_bias": True}, imported=True),
    "qwen3": QWEN3,
    "qwen3_moe": moe(2),
    "arcee": STOCK["relu2"][1],
    **{
        name: tiny_config(heads={"qk_norm": False}, imported=True, came_as=name)
        for name in ("mistral", "ministral", "phi3")
    },
    "seed_oss": tiny_config(
        heads={"qk_norm": False, "qkv_bias": True}, imported=True, came_as="seed_oss"
    ),
}
STATES = {name: scrambled(config).state_dict() for name, config in CONFIGS.items()}
FIELDS = {name: to_transformers(CONFIGS[name], state)[0] for name, state in STATES.items()}


def rows(cases):
    """Return the cases of each architecture as parameters, with its name first."""
    for name, own in cases.items():
        for case in own:
            yield (name, *case) if isinstance(case, tuple) else (name, case)


MISFITS = {
    "llama": [
        ({"heads": None}, "Llama does not support heads.qk_norm True"),
        ({"heads": {"qk_norm": False, "qkv_bias": True}}, "Llama .* heads.output_bias False"),
        ({"heads": {"qk_norm": False, "rotary": "half"}}, "Llama .* heads.rotary half"),
        ({"n_heads": 6, "head_dim": 8}, "Llama .* a d_model 32 that n_heads 6 does not divide"),
        (
            {"activation": "relu2", "softcap": 3.0},
            "Llama does not support softcap 3.0, activation relu2",
        ),
        ({"positions": "learned", "head_dim": 5}, "Llama .* such a model .head_dim 5 is odd"),
    ],
    "qwen2": [
        ({"heads": None}, "Qwen2 .* heads.qk_norm True, heads.qkv_bias False"),
        ({"head_dim": 12}, "Qwen2 does not support head_dim 12"),
        ({"logit_cap": 15.0}, "Qwen2 does not support logit_cap 15.0"),
        (
            {"imported": False},
            "transformers splits the text of each Qwen2 as Qwen2's own tokenizer",
        ),
    ],
    "arcee": [
        ({"activation": "swiglu"}, "Arcee does not support activation swiglu"),
        ({"n_heads": 6, "head_dim": 8}, "Arcee .* a d_model 32 that n_heads 6 does not divide"),
        ({"heads": {"qk_norm": False, "value_norm": True}}, "Arcee .* heads.value_norm True"),
        ({"positions": "learned"}, "Arcee does not support positions learned"),
        ({"primitives": BANKS | {"ternary": True}}, "Arcee does not support primitives with norms"),
    ],
    "phi3": [({"rope_scaling": SCALED}, "Phi3 .* such a model .*rope_type is 'llama3'; only")],
}


@pytest.mark.parametrize(("name", "changes", "reason"), rows(MISFITS))
def test_what_the_architecture_can_not_compute_is_said(name, changes, reason):
    own = {"head_dim": None} if name == "llama" else {}
    config = ModelConfig.of(CONFIGS[name].to_dict() | own | changes)
    with pytest.raises(BadInput, match=f"can't be exported as {name}: {reason}"):
        architecture_of(config, name)
    assert architecture_of(config).model_type != name


@pytest.mark.parametrize("name", ["mistral", "ministral", "phi3", "seed_oss"])
def test_an_import_is_exported_as_what_it_came_as_while_that_fits(name):
    """A Llama computes the first three too, but transformers may read another tokenizer there."""
    config = config_from_transformers(FIELDS[name])
    assert config == CONFIGS[name]
    assert architecture_of(config).model_type == name
    first = "qwen2" if name == "seed_oss" else "llama"
    assert architecture_of(replace(config, came_as=None)).model_type == first
    assert architecture_of(replace(config, softcap=1.5)).model_type == "pion"
    own = replace(config, came_as=None, imported=False)
    assert architecture_of(own).model_type == ("pion" if name == "seed_oss" else "llama")


def test_a_model_that_the_first_fit_exports_as_what_it_is_records_nothing_new():
    for name in ("llama", "qwen2", "qwen3", "qwen3_moe", "arcee"):
        assert "came_as" not in config_from_transformers(FIELDS[name]).to_dict()


def test_a_head_may_be_wider_than_its_share_of_d_model():
    config = tiny_config(heads=Heads(qk_norm=False), head_dim=12)
    assert architecture_of(config).name == "LlamaForCausalLM"
    assert config_from_transformers(to_transformers(config, {})[0]).head_dim == 12


def test_a_width_of_heads_that_only_transformers_takes_is_read():
    theirs = stock_model("Qwen2.5", head_dim=12)
    config, state = from_transformers(theirs.config.to_dict(), theirs.state_dict())
    assert config.head_dim == 12
    assert apart(Decoder.from_state(config, state), theirs, tokens(50)) <= 1e-4
    assert not architecture_of(config).stock


# ---------------------------------------------------------------- rows of the tables


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_the_tokenizer_lacks_are_dropped_from_every_table(name):
    ours = scrambled(MODELS[name])
    config, state = from_transformers(*to_transformers(ours.config, ours.state_dict(), 250))
    back = Decoder.from_state(config, state)
    assert config.vocab_size == config.head_rows == 250
    assert not any(n in tensor.shape for tensor in state.values() for n in (287, 320))
    torch.testing.assert_close(back(TOKENS), ours(TOKENS)[..., :250], rtol=0, atol=1e-6)


def test_more_rows_than_the_model_has_are_refused():
    with pytest.raises(BadInput, match="has 61 embedding rows, not 62"):
        to_transformers(QWEN3, {}, vocab_size=62)


# ---------------------------------------------------------------- configs that are read


def test_the_config_has_no_field_that_qwen2_does_not_have():
    assert not {"head_dim", "attention_bias"} & FIELDS["qwen2"].keys()
    assert FIELDS["qwen2"]["use_sliding_window"] is False


def test_no_id_of_an_arcee_is_beyond_the_vocabulary():
    import transformers

    loaded = transformers.ArceeConfig(**FIELDS["arcee"])
    ids = [value for name, value in loaded.to_dict().items() if name.endswith("_token_id")]
    assert all(value is None or value < loaded.vocab_size for value in ids if value != 128_001)
    assert loaded.bos_token_id is None


WITHOUT_EFFECT = {
    "llama": [
        {"pretraining_tp": 4},
        {"sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 1},
        {"layer_types": ["full_attention", "full_attention"]},
        {"layer_types": None},
        {"rope_scaling": None, "rope_theta": 10_000.0},
        {"partial_rotary_factor": 1.0},
        {"head_dim": None, "num_key_value_heads": 2},
    ],
    "qwen2": [
        {"attention_bias": False},  # Qwen2 has its biases whatever this says
        {"sliding_window": 32_768, "max_window_layers": 1},
        {"layer_types": ["full_attention", "full_attention"], "sliding_window": None},
        {"head_dim": 8},
        {"use_mrope": False},
    ],
    "mistral": [{"sliding_window": 24}, {"sliding_window": 4096}],
    "ministral": [
        {"sliding_window": None, "layer_types": None},
        {"sliding_window": 24, "layer_types": ["sliding_attention"] * 2},
        {"sliding_window": 8},  # of no layer
    ],
}


@pytest.mark.parametrize(("name", "change"), rows(WITHOUT_EFFECT))
def test_a_field_without_effect_changes_nothing(name, change):
    fields = FIELDS[name]
    assert config_from_transformers(fields | change) == config_from_transformers(fields)


LACKED = {
    "llama": [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu' and 'gelu_pytorch_tanh' are"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has 'sliding_attention' in 1 of 2 layers; only 'full_attention' can",
        ),
        ({"layer_types": "chunked_attention"}, "layer_types must be a list with a value for each"),
        ({"layer_types": {"0": 1}}, "layer_types must be a list"),
        ({"layer_types": [{"0": 1}, []]}, "layer_types has {'0': 1} in 1 of 2 layers"),
        ({"num_key_value_heads": 3}, "n_heads 4 is not a multiple of n_kv_heads 3"),
        ({"rms_norm_eps": -1e-6}, "norm_eps is -1e-06; it must be a number above 0"),
    ],
    "qwen2": [
        ({"use_sliding_window": True}, "use_sliding_window is True; only False is supported"),
        ({"layer_types": ["sliding_attention"] * 2}, "layer_types has 'sliding_attention'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; only 'silu' and"),
    ],
    "qwen3": [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
    "qwen3_moe": [
        ({"norm_topk_prob": False}, "norm_topk_prob is False; only True is supported"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers is"),
        ({"mlp_only_layers": 3}, "mlp_only_layers is 3"),
        ({"model_type": ["qwen3_moe"]}, "model_type is"),
        ({"tie_word_embeddings": "no"}, "tie_embeddings is 'no'; it must be true or false"),
        ({"num_experts_per_tok": 6}, "top_k 6 is more than experts.n 5"),
    ],
    "arcee": [({"hidden_act": "silu"}, "hidden_act is 'silu'; only 'relu2' and 'gelu' and")],
    "mistral": [
        ({"sliding_window": "24"}, "windows.tokens is '24'"),
        ({"sliding_window": 0}, "windows.tokens is 0"),
        ({"layer_types": ["linear_attention"] * 2}, "layer_types has 'linear_attention'"),
    ],
    "phi3": [
        ({"rope_scaling": {"type": "longrope"}}, "of type longrope need short_factor, long_factor"),
        ({"rope_scaling": {"type": "yarn"}}, "'yarn'; only 'default' and 'longrope' are supported"),
        (
            {"rope_parameters": {"partial_rotary_factor": 2}},
            "heads.rotary_share is 2; it must be a number above 0, up",
        ),
    ],
}


@pytest.mark.parametrize(("name", "change", "message"), rows(LACKED))
def test_a_field_with_an_effect_that_we_lack_is_refused(name, change, message):
    with pytest.raises(BadInput, match=message):
        config_from_transformers(FIELDS[name] | change)


def test_a_window_that_a_mistral_does_not_name_is_its_class_own():
    without = {n: value for n, value in FIELDS["mistral"].items() if n != "sliding_window"}
    assert config_from_transformers(without).windows is None
    windows = config_from_transformers(without | {"max_position_embeddings": 8192}).windows
    assert windows == Windows(tokens=4096, block=1, full_layers=())


def test_a_folder_of_another_architecture_is_refused_by_name():
    with pytest.raises(BadInput, match=r"'gemma4'; did you mean 'gemma'\?; Pion reads qwen3,"):
        from_transformers({"model_type": "gemma4"}, {})


def test_biases_of_experts_are_refused():
    with pytest.raises(BadInput, match="only dense feed-forward layers have biases"):
        replace(CONFIGS["qwen3_moe"], feedforward_bias=True)


# ---------------------------------------------------------------- tensors that do not fit

LAYER = "model.layers.0"


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("qwen2", f"{LAYER}.self_attn.o_proj.bias"),
        ("qwen3", f"{LAYER}.mlp.experts.weight"),
        ("qwen3_moe", f"{LAYER}.mlp.shared"),
    ],
)
def test_a_foreign_tensor_is_named(name, tensor):
    hf_config, hf_state = to_transformers(CONFIGS[name], STATES[name])
    with pytest.raises(BadInput, match=re.escape(f"unexpected tensor {tensor}")):
        from_transformers(hf_config, hf_state | {tensor: torch.zeros(1)})


def test_a_fused_matrix_of_another_height_and_a_missing_one_are_named():
    hf_config, hf_state = to_transformers(CONFIGS["phi3"], STATES["phi3"])
    name = f"{LAYER}.self_attn.qkv_proj.weight"
    assert hf_state[name].shape == (64, 32)
    with pytest.raises(BadInput, match=rf"{name} has shape \(65, 32\); the .* need 64 rows"):
        from_transformers(hf_config, hf_state | {name: torch.zeros(65, 32)})
    with pytest.raises(BadInput, match=f"the weights have no {name}"):
        from_transformers(hf_config, {k: v for k, v in hf_state.items() if k != name})


def test_a_missing_expert_and_one_of_another_shape_are_named():
    hf_config, hf_state = to_transformers(CONFIGS["qwen3_moe"], STATES["qwen3_moe"])
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    with pytest.raises(BadInput, match=f"the weights have no {name}"):
        from_transformers(hf_config, {k: v for k, v in hf_state.items() if k != name})
    with pytest.raises(BadInput, match=rf"{name} has shape \(1, 1\), unlike model"):
        from_transformers(hf_config, hf_state | {name: torch.zeros(1, 1)})

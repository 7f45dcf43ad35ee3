"""Models of transformers' own classes are read, computed and written as those classes do it.

Every bias and every gain is random, because a fresh model's are 0 and 1, which hides mistakes.
"""

from dataclasses import replace

import pytest
import torch

import pion
from pion.config.lora import Lora
from pion.config.parts import RopeScaling
from pion.errors import BadInput
from pion.formats.huggingface.architectures import ARCHITECTURES, from_transformers, to_transformers
from pion.formats.huggingface.attention_fields import Rotary
from pion.formats.huggingface.rows import DEFAULTS
from pion.formats.load import load_decoder
from pion.formats.peft_folder import require_adaptable
from pion.model.decoder import Decoder
from tests.support.stock_models import (
    LLAMA3,
    NAMES,
    STOCK,
    apart,
    randomize,
    saved,
    stock_model,
    stored,
    tokens,
)
from tests.support.tiny_config import tiny_config

ALLOWED = 1e-4
# Beyond 1,024 tokens, scaled positions differ the most from others.
LONG = tokens(1100)


class Models(dict):
    def __missing__(self, name):
        self[name] = stock_model(name)
        return self[name]


@pytest.fixture(scope="module")
def theirs():
    return Models()


def read(model):
    return Decoder.from_state(*from_transformers(model.config.to_dict(), stored(model)))


# ---------------------------------------------------------------- the same results


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_by_transformers_gives_the_logits_of_its_class(name, theirs, tmp_path):
    assert apart(load_decoder(saved(theirs[name], tmp_path)), theirs[name], LONG) <= ALLOWED


@pytest.mark.parametrize("joined", [True, pytest.param(False, marks=pytest.mark.soak)])
@pytest.mark.parametrize("name", NAMES)
def test_cached_generation_gives_the_tokens_of_its_class(name, joined, theirs):
    ours, prompt = read(theirs[name]), tokens(1030)
    if joined:
        ours = ours.joined()
    expected = theirs[name].generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    found = pion.generate(ours, prompt[0].tolist(), max_tokens=24, temperature=0, stop_ids=())
    assert list(found) == expected[0, 1030:].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_packed_documents_give_the_logits_of_each_alone(name, theirs):
    ours, both = read(theirs[name]), tokens(700)
    lengths = (600, 100)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    documents = torch.repeat_interleave(torch.arange(2), torch.tensor(lengths))[None]
    with torch.inference_mode():
        packed = ours(both, positions=positions, documents=documents)
        alone = [theirs[name](part).logits for part in both.split(lengths, dim=1)]
    assert (packed - torch.cat(alone, dim=1)).abs().max() <= ALLOWED


# ---------------------------------------------------------------- the way back


@pytest.mark.parametrize("name", NAMES)
def test_a_model_goes_back_as_its_class_with_its_settings_and_tensors(name, theirs):
    model = theirs[name]
    hf_config, hf_state = to_transformers(*from_transformers(model.config.to_dict(), stored(model)))
    assert hf_config["architectures"] == [type(model).__name__]
    settings = type(model.config)(**hf_config, attn_implementation="eager")
    free = {"architectures", "eos_token_id", "dtype", "transformers_version", "attention_dropout"}
    free |= {"rope_parameters", "max_position_embeddings"}  # tested by what is computed
    assert {n: v for n, v in settings.to_dict().items() if n not in free} == {
        n: v for n, v in model.config.to_dict().items() if n not in free
    }
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    assert hf_state.keys() == stored(model).keys() - tied
    assert all(torch.equal(tensor, stored(model)[n]) for n, tensor in hf_state.items())
    again = type(model)(settings).eval()
    loaded = {name.replace("embed_out", "lm_head"): each for name, each in hf_state.items()}
    again.load_state_dict(loaded, strict=False)
    again.tie_weights()
    with torch.inference_mode():
        assert torch.equal(again(LONG).logits, model(LONG).logits)


def test_a_context_beyond_the_short_factors_has_the_long_ones_for_every_text(theirs):
    """transformers would decide by each text, so the short factors that it reads are the long."""
    config, state = from_transformers(
        theirs["Phi-4-mini"].config.to_dict(), theirs["Phi-4-mini"].state_dict()
    )
    assert config.seq_len == 2048
    ours = Decoder.from_state(replace(config, seq_len=4096), state)
    hf_config, hf_state = to_transformers(ours.config, state)
    again = type(theirs["Phi-4-mini"])(type(theirs["Phi-4-mini"].config)(**hf_config)).eval()
    again.load_state_dict(hf_state)
    for length in (100, 2200):
        assert apart(ours, again, tokens(length)) <= ALLOWED
    assert apart(ours, theirs["Phi-4-mini"], tokens(2200)) <= ALLOWED
    assert apart(ours, theirs["Phi-4-mini"], tokens(100)) > 1e-2


# ---------------------------------------------------------------- what a config leaves out

CLASSES = {
    architecture.name.removesuffix("ForCausalLM"): architecture
    for architecture in ARCHITECTURES
    if architecture.stock
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_defaults_are_those_of_the_class(name):
    """A class without a field has no default, and `None` stands for what follows from others."""

    import transformers

    settings = getattr(transformers, f"{name}ForCausalLM").config_class()
    for field, default in {**DEFAULTS, **CLASSES[name].defaults}.items():
        expected = getattr(settings, field, default)
        if default is None:
            follows = {
                "num_key_value_heads": settings.num_attention_heads,
                "head_dim": settings.hidden_size // settings.num_attention_heads,
            }
            assert getattr(settings, field, None) in (None, follows.get(field)), field
        else:
            assert default == expected, field
    rope = settings.rope_parameters
    rope, rotary = rope.get("full_attention", rope), CLASSES[name].rotary
    assert rotary.theta == rope["rope_theta"]
    assert rotary.share == rope.get("partial_rotary_factor")


# Numbers of experts, kinds of layers, 20 heads with keys, widths of heads, and positions.
NEED_MORE = {"Ministral3", "Nemotron", "Qwen3Moe", "GraniteMoeHybrid", "Helium", "Ministral"}


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - NEED_MORE))
def test_a_config_with_sizes_alone_is_what_the_class_makes_of_it(name, tmp_path):
    import transformers

    sizes = {
        "vocab_size": 97,
        "hidden_size": 256,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
    }
    kind = getattr(transformers, f"{name}ForCausalLM")
    model = kind(kind.config_class(**sizes, pad_token_id=0, attn_implementation="eager")).eval()
    randomize(model)
    every = {field: None for field in model.config.to_dict() if field not in (*sizes, "model_type")}
    assert apart(load_decoder(saved(model, tmp_path, **every)), model, tokens(60)) <= 5 * ALLOWED


@pytest.mark.parametrize("field", ["hidden_size", "vocab_size", "num_hidden_layers"])
def test_a_size_that_is_not_there_is_named(field, theirs):
    fields = theirs["Qwen2.5"].config.to_dict()
    del fields[field]
    with pytest.raises(BadInput, match=f"config.json has no '{field}'"):
        from_transformers(fields, {})


# ---------------------------------------------------------------- rotary settings

SCALING = RopeScaling(factor=8.0, original_max_position_embeddings=256)
CONTEXT = {"max_position_embeddings": 512}
NEW_LLAMA3 = {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}
OLD_LLAMA3 = {"rope_scaling": LLAMA3, "rope_theta": 5e5}
OLDER_LLAMA3 = OLD_LLAMA3 | {
    "rope_scaling": {"type": "llama3"} | {n: v for n, v in LLAMA3.items() if n != "rope_type"}
}


@pytest.mark.parametrize(
    ("fields", "theta", "scaling"),
    [
        ({}, 1e4, None),
        ({"rope_theta": 130_000}, 130_000, None),
        ({"rope_theta": 1e5, "rope_scaling": None}, 1e5, None),
        ({"rope_theta": 1e5, "rope_parameters": None, "rope_scaling": {}}, 1e5, None),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 1e6, None),
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e5}, 1e6, None),
        ({"rope_scaling": {"type": "default", "factor": 2.0}, "rope_theta": 1e5}, 1e5, None),
        (NEW_LLAMA3, 5e5, SCALING),
        (OLD_LLAMA3, 5e5, SCALING),
        (OLDER_LLAMA3, 5e5, SCALING),
        (OLD_LLAMA3 | {"rope_parameters": {"rope_theta": 1e6}}, 5e5, SCALING),
    ],
)
def test_both_spellings_are_read(fields, theta, scaling):
    read = Rotary().read(CONTEXT | fields)
    assert (read["rope_theta"], read.get("rope_scaling")) == (theta, scaling)


def test_the_original_context_is_the_whole_one_where_none_is_given():
    without = {n: v for n, v in LLAMA3.items() if n != "original_max_position_embeddings"}
    for fields, original in (({}, 512), ({"original_max_position_embeddings": 128}, 128)):
        read = Rotary().read(CONTEXT | {"rope_parameters": without} | fields)
        assert read["rope_scaling"].original_max_position_embeddings == original


@pytest.mark.parametrize("spelling", [NEW_LLAMA3, OLD_LLAMA3, OLDER_LLAMA3])
def test_each_spelling_is_what_transformers_makes_of_it(spelling, tmp_path):
    """transformers reads the folder too, so that a spelling that it does not know would show."""

    import transformers

    absent = {"rope_parameters": None, "rope_theta": None, "rope_scaling": None}
    saved(stock_model("Llama 3.2"), tmp_path, **absent | spelling)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert apart(load_decoder(tmp_path), theirs, tokens(600)) <= 1e-4
    theirs = stock_model("Llama 3.2", rope_scaling=None)
    assert apart(load_decoder(tmp_path), theirs, tokens(600)) > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "rope_type is 'ntk'; only 'default'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "positions of type linear need factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 0.5}}, "factor is 0.5; it must be"),
        ({"rope_parameters": {"rope_type": ["llama3"]}}, r"rope_type is \['llama3'\]"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "need low_freq_factor, high"),
        ({"rope_parameters": "llama3"}, "rope_parameters is 'llama3'; it must be an object"),
        ({"rope_scaling": 8.0}, "rope_scaling is 8.0; it must be an object"),
        ({"rope_scaling": 0}, "rope_scaling is 0; it must be an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1 is supported"),
        ({"rope_parameters": {"partial_rotary_factor": 0.25}}, "partial_rotary_factor is 0.25"),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "rope_parameters has settings for 'full_attention' alone",
        ),
        ({"rope_parameters": LLAMA3 | {"factor": 0.5}}, "factor is 0.5; it must be at least 1"),
        ({"rope_parameters": LLAMA3 | {"factor": "8"}}, "type llama3 need numbers above 0"),
    ],
)
def test_positions_that_we_do_not_compute_are_refused(fields, message):
    with pytest.raises(BadInput, match=message):
        Rotary().read(CONTEXT | fields)


def test_what_is_not_the_default_is_written_in_both_spellings():
    assert Rotary().write(tiny_config()) == {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}
    }
    theta = Rotary().write(tiny_config(rope_theta=1e6))
    assert theta["rope_theta"] == theta["rope_parameters"]["rope_theta"] == 1e6
    written = Rotary().write(tiny_config(rope_theta=5e5, rope_scaling=SCALING))
    assert written == NEW_LLAMA3 | OLD_LLAMA3
    for spelling in ("rope_parameters", "rope_scaling"):
        one = {name: value for name, value in written.items() if name != spelling}
        assert Rotary().read(CONTEXT | one) == {"rope_theta": 5e5, "rope_scaling": SCALING}


# ---------------------------------------------------------------- models of text and images

VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.parametrize(("kind", "text"), [("Gemma3", "Gemma 3"), ("Mistral3", "Mistral")])
def test_of_a_model_of_text_and_images_the_text_part_is_read(kind, text, tmp_path):
    import transformers

    cls = getattr(transformers, f"{kind}ForConditionalGeneration")
    inner = STOCK[text][1] | {"model_type": "gemma3_text" if kind == "Gemma3" else "mistral"}
    ids = {f"{name}_token_index": 90 + i for i, name in enumerate(("image", "boi", "eoi"))}
    theirs = cls(
        cls.config_class(
            text_config=inner, vision_config=VISION, tie_word_embeddings=kind == "Gemma3", **ids
        )
    ).eval()
    randomize(theirs)
    ours = load_decoder(saved(theirs, tmp_path))
    assert apart(ours, theirs, tokens(200)) <= ALLOWED
    hf_config, _ = to_transformers(ours.config, ours.state_dict())
    assert hf_config["architectures"] == [f"{STOCK[text][0]}ForCausalLM"]
    with pytest.raises(BadInput, match=f"{kind.lower()} in transformers has the text model within"):
        require_adaptable(ours.config, Lora())

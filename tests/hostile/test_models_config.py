"""A config.json that claims what its weights don't have is refused before anything is built."""

import dataclasses

import pytest
import torch

from pion.config.model_config import PARTS as KINDS
from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.evaluation.held_out import Scorer
from pion.evaluation.multiple_choice import multiple_choice
from pion.evaluation.questions import Question
from pion.formats.load import load, load_decoder
from pion.generation.generate import generate
from pion.model.parameters import MOST_LAYERS, require_possible
from tests.hostile.attacks import Attack
from tests.hostile.in_process import pion, refused
from tests.hostile.model_folders import (
    PARTS,
    PLAIN,
    PRIMITIVES,
    SCALED,
    SLOTS,
    edit,
    model_folder,
    record_of,
)
from tests.support.known_models import OnSmallGpu

OURS_WITH_PARTS = {"parts": PARTS, "primitives": PRIMITIVES, "slots": SLOTS}
OF_OTHERS = {"foreign": PLAIN, "scaled": SCALED}
# Every field of the settings, and of every part.
FIELDS = [(field.name,) for field in dataclasses.fields(ModelConfig)]
FIELDS += [(part, f.name) for part, kind in KINDS.items() for f in dataclasses.fields(kind)]
ATTACKS = ("missing", "null", "NaN", "1e300", "-1", "deep", "escape", "200 digits", "an object")
# What scales rotary positions in transformers, by its kind, and values that are right.
SCALING = {"factor": 4.0, "original_max_position_embeddings": 16}
ROTARY = {
    "llama3": SCALING | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": SCALING | {"beta_fast": 8.0, "beta_slow": 1.0, "truncate": True, "mscale": 1.0}
    | {"mscale_all_dim": 0.5, "attention_factor": 1.2},
    "longrope": SCALING
    | {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "attention_factor": 1.2},
}  # fmt: skip
OF_KINDS = [(kind, name) for kind, named in ROTARY.items() for name in ("rope_type", *named)]
NEEDED = ("low_freq_factor", "high_freq_factor", "short_factor", "long_factor")
# Settings of transformers that have an effect.
FOREIGN = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "rope_parameters"),
    *("rms_norm_eps", "initializer_range", "tie_word_embeddings", "intermediate_size"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {
        name: model_folder(tmp_path_factory.mktemp(name), config, foreign=name in OF_OTHERS)
        for name, config in {**OURS_WITH_PARTS, **OF_OTHERS}.items()
    }


def loads_or_says_why(folder, settings):
    """Return the refusal of a folder with this config.json; None if the model can be used."""
    path = folder / "config.json"
    before = path.read_bytes()
    path.write_bytes(settings)
    try:
        model = load_decoder(folder)
    except BadInput as error:
        why = str(error)
        assert str(folder) in why
        assert len(why) < 1000
        return why
    finally:
        path.write_bytes(before)
    assert list(generate(model, [1, 2], stop_ids=(), max_tokens=1))
    return None


def refusals(folder, record, place):
    """Return by attack why a model with the attacked setting is refused; None if it is used."""
    return {
        what: loads_or_says_why(folder, Attack(place, what, None).on(record)) for what in ATTACKS
    }


@pytest.mark.parametrize("field", FIELDS, ids=".".join)
def test_every_setting_is_checked(folders, field):
    name = field[0] if field[0] in OURS_WITH_PARTS else "parts"
    model = OURS_WITH_PARTS[name]
    # A record leaves out what has its earlier value.
    record = {n: getattr(model, n) for n in ("softcap", "head_dim", field[0])} | model.to_dict()
    if len(field) == 2:
        assert record[field[0]], "one of the models has each part"
        record[field[0]] = {field[1]: None} | record[field[0]]
    for what, why in refusals(folders[name], record, field).items():
        if what in ("NaN", "deep"):
            assert "config.json is not valid JSON" in str(why), what
        elif what not in ("missing", "null"):
            assert field[-1] in str(why), what


@pytest.mark.parametrize("field", FOREIGN)
def test_every_setting_of_transformers_is_checked(folders, field):
    folder = folders["foreign"]
    for what, why in refusals(folder, record_of(folder), (field,)).items():
        empty = (field, what) == ("rope_parameters", "an object")
        assert why or what in ("missing", "null") or empty, what


@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(("kind", "field"), OF_KINDS)
def test_every_setting_of_scaled_positions_is_checked(folders, spelling, kind, field):
    record = record_of(folders["scaled"])
    del record["rope_parameters"], record["rope_scaling"]
    record[spelling] = {"rope_type": kind, "rope_theta": 1e4} | ROTARY[kind]
    # Without a type nothing is scaled, and most numbers have a default.
    optional = field not in NEEDED and (field, kind) != ("factor", "llama3")
    for what, why in refusals(folders["scaled"], record, (spelling, field)).items():
        assert why or (optional and what in ("missing", "null")), what


# By name, settings that once took all memory, all time or a traceback.
BOMBS = {
    "layers 1e5": {"num_hidden_layers": 10**5},
    "layers 1e8": {"num_hidden_layers": 10**8},
    "width 2^62": {"hidden_size": 2**62},
    "width 2^50": {"hidden_size": 2**50},
    "width 1e30": {"hidden_size": 1e30},
    "feed-forward 2^50": {"intermediate_size": 2**50},
    "vocabulary 1e12": {"vocab_size": 10**12},
    "heads 1e9": {"num_attention_heads": 10**9, "num_key_value_heads": 10**9},
    "head 1e9": {"head_dim": 10**9},
    "positions in a list": {"rope_parameters": ["yarn"]},
    "positions in a text": {"rope_parameters": "yarn"},
    "theta 1e300": {"rope_parameters": {"rope_theta": 1e300}},
    "true for 1": {"num_key_value_heads": True},
}


OURS = {
    "layers": {"n_layers": 10**8},
    "experts": {"experts": {"n": 2**40, "top_k": 1, "shared": 0}},
    "shared experts": {"experts": {"n": 1, "top_k": 1, "shared": 10**8, "d_shared": 1}},
    "tables": {"values": {"layers": [0], "tables": [10**12]}},
    "rows of the head": {"head_multiple": 2**50, "tie_embeddings": False},
    "an unknown setting": {"x" * 10**6: 1},
    "a layer named again and again": {"wiring": {"attention_layers": [0] * 10**5}},
}


RECIPES = {"experts": {"n": 10**8, "top_k": 1, "shared": 0}}
# The settings; whether they are transformers'; the model; and what else the refusal says.
ALL_BOMBS = {
    **{f"foreign: {name}": (settings, True, PLAIN, "") for name, settings in BOMBS.items()},
    **{f"ours: {name}": (settings, False, PLAIN, "") for name, settings in OURS.items()},
    # Recipes that no tensor has, before they are built.
    "recipes": (RECIPES, False, PRIMITIVES, "100,000,000 shared experts or recipes"),
}


@pytest.mark.parametrize("bomb", ALL_BOMBS)
def test_a_bomb_in_a_config_is_refused_by_generate_and_export(tmp_path, bomb):
    settings, foreign, model, words = ALL_BOMBS[bomb]
    folder, out = model_folder(tmp_path / "model", model, foreign=foreign), tmp_path / "out"
    edit(folder, **settings)
    command = ("generate", folder, "--prompt", "Return") if foreign else ("export", folder, out)
    message = refused(*command)
    assert str(folder) in message
    assert words in message
    assert not out.exists()


def test_unknown_settings_are_ignored_in_a_foreign_config_and_refused_in_ours(tmp_path):
    foreign, ours = model_folder(tmp_path / "a", foreign=True), model_folder(tmp_path / "b")
    edit(foreign, invented=1)
    edit(ours, invented=1)
    assert load_decoder(foreign).config == dataclasses.replace(PLAIN, imported=True)
    assert "unknown model field 'invented'" in refused("eval", ours, ours / "config.json")


# ---------------------------------------------------------------- contexts


def test_a_context_costs_what_is_used_of_it(tmp_path):
    folder = model_folder(tmp_path, foreign=True)
    (folder / "text.txt").write_text("Return a new header. " * 20)
    question = '{"context": "Return", "choices": [" a", " header"], "answer": 0}\n'
    (folder / "pack.jsonl").write_text(question * 50)
    command = ("generate", folder, "--prompt", "Return", "--max-tokens", "8", "--seed", "1")
    measure = ("eval", folder, folder / "text.txt", folder / "pack.jsonl")
    edit(folder, max_position_embeddings=4096)
    honest = [pion(*command), pion(*measure)]
    assert honest[0].code == honest[1].code == 0
    for tokens in (10**11, 2**53):
        edit(folder, max_position_embeddings=tokens)
        assert [pion(*command), pion(*measure)] == honest
    talk = pion("chat", folder, "--max-tokens", "4", typed="Return\n")
    assert talk.code == 0, talk
    assert f"context {2**53:,} tokens" in talk.out


def test_a_context_of_1e11_does_not_make_one_batch_of_all_questions(tmp_path, monkeypatch):
    folder = model_folder(tmp_path, foreign=True)
    edit(folder, max_position_embeddings=10**11)
    model, tokenizer = load(folder)
    watched = OnSmallGpu(model, limit=10**6)
    questions = [Question("Return", (" a new header", " the"), 0)] * 20
    monkeypatch.setattr("pion.evaluation.multiple_choice.TOKENS_AT_ONCE", 64)
    multiple_choice(Scorer(watched, 300, 1), tokenizer, questions)
    assert sum(watched.seen) == 40
    assert max(watched.seen) < 20


def test_a_context_beyond_whole_numbers_is_refused(tmp_path):
    folder = model_folder(tmp_path, foreign=True)
    edit(folder, max_position_embeddings=2**53 + 1)
    assert "seq_len is 9007199254740993" in refused("chat", folder)


def test_a_model_of_half_the_most_layers_is_possible():
    config = dataclasses.replace(PLAIN, n_layers=MOST_LAYERS // 2)
    tensors = {f"blocks.{i}.norm.weight": torch.ones(64) for i in range(MOST_LAYERS // 2)}
    require_possible(config, tensors)
    with pytest.raises(BadInput, match="n_layers is 513, but the weights have tensors of 512"):
        require_possible(dataclasses.replace(config, n_layers=513), tensors)

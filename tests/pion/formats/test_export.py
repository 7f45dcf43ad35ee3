"""Transformers loads an exported folder as stock Qwen3, with exactly the trained model."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.data.chat.conversation import Turn, tokenize
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput, PionError
from pion.formats.export import GENERATION, export_model
from pion.formats.target_folder import EXPORT_FILES, is_export, replace_folder
from pion.formats.verify import MAX_LOGIT_DIFFERENCE, verify_export
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

TEXTS = [
    "Return a new header with the string.\n\n    >>> os.path.join('a', 'b')",
    "naïve café — 測試 \t emoji 🙂 and <|endoftext|> spelled out",
]
LACKING_ROWS = 7  # embedding rows the tokenizer can't produce, as the seeds' checkpoints have


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_bpe(TEXTS * 3, 300).save(path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path):
    return Tokenizer.from_file(tokenizer_path)


def small_config(tokenizer, **fields):
    return tiny_config(
        **{"vocab_size": tokenizer.vocab_size + LACKING_ROWS, "seq_len": 64, **fields}
    )


@pytest.fixture(scope="module")
def decoder(tokenizer):
    torch.manual_seed(0)
    return Decoder(small_config(tokenizer, init_std=0.2)).eval()


@pytest.fixture(scope="module")
def exported(decoder, tokenizer_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "model"
    export_model(decoder, tokenizer_path, out)
    return out


@pytest.fixture(scope="module")
def loaded(exported):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    kinds = (AutoModelForCausalLM, AutoTokenizer)
    return [kind.from_pretrained(exported, trust_remote_code=False) for kind in kinds]


@pytest.fixture
def copy(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "copy"))


# ---------------------------------------------------------------- what transformers sees


def test_transformers_loads_it_as_stock_qwen3_with_the_trained_models_logits(
    loaded, decoder, tokenizer
):
    from transformers import Qwen3ForCausalLM

    model, _ = loaded
    assert type(model) is Qwen3ForCausalLM
    assert next(model.parameters()).dtype is torch.float32
    tokens = torch.tensor([tokenizer.encode(TEXTS[0])])
    with torch.inference_mode():
        expected = decoder(tokens)[..., : tokenizer.vocab_size]
        torch.testing.assert_close(model(tokens).logits, expected, atol=1e-4, rtol=0)


def test_the_tokenizer_comes_with_its_special_tokens_and_the_models_context(loaded, tokenizer):
    _, theirs = loaded
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.end_of_text, tokenizer.pad)
    assert theirs.model_max_length == 64
    assert theirs.decode(theirs(TEXTS[0])["input_ids"]) == TEXTS[0]


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "What does os.path.join do?")],
        [("system", "Be brief."), ("user", " hi \n"), ("assistant", "Hello."), ("user", "more")],
        [("user", "say <|endoftext|>"), ("assistant", "no <|pad|>"), ("user", "測試")],
    ],
)
def test_the_chat_template_gives_the_ids_of_our_chat_tokenisation(loaded, tokenizer, messages):
    ours = tokenize(tokenizer, [Turn(*m) for m in messages], add_generation_prompt=True)
    theirs = loaded[1].apply_chat_template(
        [{"role": role, "content": text} for role, text in messages],
        add_generation_prompt=True,
        return_dict=True,
    )
    assert theirs["input_ids"] == ours.ids.tolist()


def test_a_base_model_has_no_chat_template_and_defaults_can_be_overridden(
    decoder, tokenizer_path, tmp_path
):
    from transformers import AutoTokenizer

    out = tmp_path / "base"
    export_model(decoder, tokenizer_path, out, chat=False, generation={"temperature": 0.2})
    assert AutoTokenizer.from_pretrained(out, trust_remote_code=False).chat_template is None
    # Else transformers warns of tokenizers with more than 100,000 tokens as if they were Mistral's.
    assert json.loads((out / "config.json").read_text())["transformers_version"] == "5.0.0"
    saved = json.loads((out / "generation_config.json").read_text())
    assert (saved["temperature"], saved["top_k"]) == (0.2, 50)


def test_generation_uses_the_saved_sampling_defaults_and_stops_at_end_of_text(loaded, tokenizer):
    model, _ = loaded
    saved = model.generation_config
    assert {name: getattr(saved, name) for name in GENERATION} == GENERATION
    assert saved.eos_token_id == tokenizer.end_of_text
    prompt = torch.tensor([tokenizer.encode("Return")])
    generated = model.generate(prompt, max_new_tokens=5)
    assert prompt.shape[1] < generated.shape[1] <= prompt.shape[1] + 5


def test_a_tokenizer_that_adds_tokens_around_texts_is_exported_as_we_use_it(
    decoder, tokenizer_path, tmp_path
):
    settings = json.loads(tokenizer_path.read_text())
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {
            "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        },
    }
    source = tmp_path / "tokenizer.json"
    source.write_text(json.dumps(settings))
    export_model(decoder, source, tmp_path / "m")
    assert verify_export(tmp_path / "m", decoder, source, TEXTS) <= MAX_LOGIT_DIFFERENCE


def test_the_same_model_is_exported_to_the_same_bytes(decoder, tokenizer_path, exported, tmp_path):
    export_model(decoder, tokenizer_path, tmp_path / "again")
    for path in exported.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_checkpoint_folder_is_exported_like_its_decoder(
    decoder, tokenizer_path, exported, tmp_path
):
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps(decoder.config.to_dict()))
    save_file(decoder.state_dict(), checkpoint / "model.safetensors")
    export_model(checkpoint, tokenizer_path, tmp_path / "m")
    written, expected = (load_file(f / "model.safetensors") for f in (tmp_path / "m", exported))
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_every_file_follows_the_umask(umask, decoder, tokenizer_path, tmp_path):
    before = os.umask(umask)
    try:
        export_model(decoder, tokenizer_path, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~umask


def test_an_architecture_that_does_not_fit_is_refused_with_the_reason(
    tokenizer, tokenizer_path, tmp_path
):
    capped = Decoder(small_config(tokenizer, softcap=30.0))
    with pytest.raises(BadInput, match=r"as qwen3: Qwen3 does not support softcap 30\.0"):
        export_model(capped, tokenizer_path, tmp_path / "m", model_type="qwen3")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(
    tokenizer, tokenizer_path, tmp_path
):
    small = Decoder(small_config(tokenizer, vocab_size=tokenizer.vocab_size - 1))
    with pytest.raises(BadInput, match="doesn't fit the model"):
        export_model(small, tokenizer_path, tmp_path / "m")


def test_a_folder_with_other_files_is_refused_and_stays_as_it_is(decoder, tokenizer_path, copy):
    (copy / "thesis.txt").write_text("ten years of work")
    with pytest.raises(BadInput, match=r"thesis\.txt"):
        export_model(decoder, tokenizer_path, copy)
    assert (copy / "thesis.txt").read_text() == "ten years of work"


def test_someone_elses_model_folder_is_refused(decoder, tokenizer_path, copy):
    assert is_export(copy)
    config = json.loads((copy / "config.json").read_text())
    del config["producer"]
    (copy / "config.json").write_text(json.dumps(config))
    assert not is_export(copy)
    with pytest.raises(BadInput, match="contains files"):
        export_model(decoder, tokenizer_path, copy)


@pytest.mark.parametrize(
    ("place", "why"), [("file", "is a file"), ("file/m", "can't write the export")]
)
def test_a_place_that_can_be_no_folder_is_refused_without_a_traceback(
    place, why, decoder, tokenizer_path, tmp_path
):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(BadInput, match=why):
        export_model(decoder, tokenizer_path, tmp_path / place)


def test_an_earlier_export_and_an_empty_folder_are_replaced(decoder, tokenizer_path, tmp_path):
    out = tmp_path / "m"
    out.mkdir()
    export_model(decoder, tokenizer_path, out, chat=True)
    export_model(decoder, tokenizer_path, out, chat=False)
    assert not (out / "chat_template.jinja").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["m"], "nothing is left beside it"
    assert {path.name for path in out.iterdir()} <= set(EXPORT_FILES)


def test_a_replacement_interrupted_between_its_renames_loses_nothing(tmp_path):
    old, new = tmp_path / ".m.previous", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "who").write_text(folder.name)
    replace_folder(new, tmp_path / "m")
    assert (tmp_path / "m" / "who").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_new_folder_that_another_process_removed_replaces_nothing(tmp_path):
    target = tmp_path / "m"
    target.mkdir()
    with pytest.raises(FileNotFoundError):
        replace_folder(tmp_path / "removed", target)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


# ---------------------------------------------------------------- verification


def test_a_faithful_export_is_verified(exported, decoder, tokenizer_path):
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars

    disable_progress_bars()  # as the Hub's store does
    assert 0 <= verify_export(exported, decoder, tokenizer_path, TEXTS) < 1e-4
    assert are_progress_bars_disabled()


QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}


def without_a_norm(weights):
    del weights["model.layers.0.self_attn.k_norm.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"].zero_()


# By what is damaged: the file, how its content is changed, and what verification says.
DAMAGES = {
    "a weight": (
        "model.safetensors",
        lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3].add_(0.5),
        "different logits",
    ),
    "a number": (
        "model.safetensors",
        lambda weights: weights["model.norm.weight"][:1].fill_(float("nan")),
        "different logits",
    ),
    "a norm": ("model.safetensors", without_a_norm, "different logits"),
    "theta": (
        "config.json",
        lambda config: config["rope_parameters"].update(rope_theta=500.0),
        "different logits",
    ),
    "the architecture": ("config.json", lambda config: config.update(QWEN2), "Qwen2ForCausalLM"),
    "the merges": (
        "tokenizer.json",
        lambda settings: settings["model"]["merges"].__delitem__(slice(-10, None)),
        "tokenizer differs from the trained",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_export_that_is_not_the_model_is_refused_in_one_sentence(
    damage, copy, decoder, tokenizer_path
):
    file, change, why = DAMAGES[damage]
    path = copy / file
    content = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
    change(content)
    if path.suffix == ".safetensors":
        save_file(content, path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(content))
    with pytest.raises(PionError, match=why):
        verify_export(copy, decoder, tokenizer_path, TEXTS)


def test_an_export_that_is_cut_is_refused_in_one_sentence(copy, decoder, tokenizer_path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PionError, match="transformers can't load the exported model"):
        verify_export(copy, decoder, tokenizer_path, TEXTS)


def test_nothing_is_verified_without_a_text(exported, decoder, tokenizer_path):
    with pytest.raises(PionError, match="no text to check"):
        verify_export(exported, decoder, tokenizer_path, [""])

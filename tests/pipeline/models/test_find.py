"""Every way to name a model finds it, or the message lists the models that exist."""

import shutil
from pathlib import Path

import pytest
import torch

from pion.errors import BadInput
from pipeline.models.find import find_model
from pipeline.models.load import load_found, load_model
from tests.paths import SEEDS
from tests.support.finished_run import make_run, tiny_model
from tests.support.hub_server import hub_server


def weight(model):
    return model.get_parameter("norm.weight") + model.get_parameter("embed.weight").sum()


def is_seed(model, seed):
    """Return whether these are the weights that finished_run.make_run drew with `seed`."""
    return torch.equal(weight(model), weight(tiny_model(model.config.vocab_size, seed=seed)))


def complaint(text):
    with pytest.raises(BadInput) as refused:
        find_model(text)
    return str(refused.value)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize(
    ("suffix", "seed", "chat"),
    [("", 2, True), ("@sft", 2, True), ("@pretrain", 1, False), ("@10", 0, False)],
)
def test_a_run_is_its_last_checkpoint_unless_another_is_named(here, suffix, seed, chat):
    make_run(here / "runs")
    found = find_model(f"demo{suffix}")
    model, chat_format = load_found(found)
    assert is_seed(model, seed)
    assert found.chat == chat
    assert chat_format.tokenizer.vocab_size == model.config.vocab_size
    assert found.label.startswith("demo (")


def test_a_run_can_be_named_with_its_store_or_as_a_folder(here):
    make_run(here / "elsewhere", "other")
    for name in ("elsewhere/other", str(here / "elsewhere" / "other"), "elsewhere/other@sft"):
        assert find_model(name).folder.name == "5-1"
    assert find_model(f"file://{here}/elsewhere/other@20").folder.name == "20-1"


def test_no_name_means_the_latest_run_that_has_a_model(here):
    make_run(here / "runs", "older", saves=[("pretrain", 1)])
    make_run(here / "runs", "newer", saves=[("pretrain", 2)])
    make_run(here / "runs", "begun", saves=[])
    assert find_model(None).label == "newer (pretrain, step 2)"


def test_a_run_that_can_not_be_read_may_be_the_latest_and_is_named(here, capsys):
    make_run(here / "runs", "older", saves=[("pretrain", 1)])
    assert find_model(None).label == "older (pretrain, step 1)"
    assert capsys.readouterr().err == ""
    make_run(here / "runs", "newer", saves=[("pretrain", 2)])
    (here / "runs/newer/HEAD.json").write_text("{")
    assert find_model(None).label == "older (pretrain, step 1)"
    assert "A run is left out: " in (said := capsys.readouterr().err)
    assert "newer/HEAD.json is damaged" in said


def test_an_unfinished_run_gives_its_newest_checkpoint_and_says_so(here):
    make_run(here / "runs", saves=[("pretrain", 10), ("pretrain", 20)], finished=[])
    assert find_model("demo").label == "demo (pretrain, step 20, unfinished)"


def test_a_finished_stage_is_preferred_to_one_under_way(here):
    make_run(here / "runs", finished=["pretrain"])
    assert find_model("demo").label == "demo (pretrain, step 20)"
    assert find_model("demo@sft").label == "demo (sft, step 5, unfinished)"


def test_a_name_with_an_at_sign_is_first_a_runs_whole_name(here):
    make_run(here / "runs", "demo@sft", saves=[("pretrain", 1)])
    make_run(here / "runs", "demo")
    assert find_model("demo@sft").label == "demo@sft (pretrain, step 1)"


def test_a_checkpoint_that_a_run_lacks_is_answered_with_those_it_has(here):
    make_run(here / "runs")
    for wrong in ("demo@7", "demo@evaluate"):
        assert "its checkpoints are: sft 5, pretrain 20, pretrain 10" in complaint(wrong)
    make_run(here / "runs", "empty", saves=[])
    assert "run empty has no checkpoint" in complaint("empty")


def test_a_listed_checkpoint_whose_weights_are_gone_is_named(here):
    make_run(here / "runs")
    (here / "runs/demo/checkpoints/sft/5-1/model.safetensors").unlink()
    message = complaint("demo")
    assert "checkpoints/sft/5-1" in message
    assert "pion checkpoints demo --verify" in message


def test_a_checkpoint_of_another_copy_of_the_run_is_refused(here):
    make_run(here / "runs", saves=[("pretrain", 10)])
    make_run(here / "other", saves=[("pretrain", 20), ("pretrain", 10)])
    where = "demo/checkpoints/pretrain/10-1"
    shutil.rmtree(here / "runs" / where)
    # Whole, and consistent in itself.
    shutil.copytree(here / "other" / where, here / "runs" / where)
    with pytest.raises(BadInput, match=r"10-1 of run demo .* weights differ from those that HEAD"):
        find_model("demo")


def test_an_unknown_name_is_answered_with_the_runs_there_are(here):
    assert "No runs in" in complaint("nothing")
    make_run(here / "runs")
    message = complaint("runs/dmeo@pretrain")  # not a repository of the Hub
    assert "there is no such file, folder or run" in message
    assert "demo." in message
    assert "no run in" in complaint_without_models(here)


def complaint_without_models(here):
    shutil.rmtree(here / "runs")
    return complaint(None)


# ---------------------------------------------------------------- folders and files


def test_a_checkpoint_folder_is_a_model_with_the_tokenizer_of_its_run(here):
    make_run(here / "runs")
    found = find_model("runs/demo/checkpoints/pretrain/20-1")
    assert (found.kind, found.chat) == ("checkpoint", False)
    assert is_seed(load_found(found)[0], 1)


def test_a_checkpoint_that_was_copied_away_needs_a_tokenizer_next_to_it(here):
    make_run(here / "runs")
    shutil.copytree("runs/demo/checkpoints/sft/5-1", "copy")
    found = find_model("copy")
    assert found.chat
    assert is_seed(load_model(found), 2)
    with pytest.raises(BadInput, match="has no tokenizer"):
        load_found(found)
    shutil.copy("runs/demo/data/1234/tokenizer.json", "copy/tokenizer.json")
    assert is_seed(load_found(find_model("copy"))[0], 2)


def test_a_seeds_file_is_a_model_for_which_a_tokenizer_must_lie_next_to_it(here):
    shutil.copy(SEEDS / "pion_nocap_ckpt.pt", "pion_sft.pt")
    found = find_model("pion_sft.pt")
    assert (found.kind, found.chat) == ("seed", True)
    assert load_model(found).num_params() > 0
    with pytest.raises(BadInput, match=r"pion import-seed .*pion_sft\.pt DIR --tokenizer FILE"):
        load_found(found)


def test_a_file_or_folder_that_is_no_model_says_what_one_looks_like(here):
    Path("notes.txt").write_text("hello")
    for name in ("notes.txt", "/dev/null"):
        assert "not a model: expected a .pt file or a folder" in complaint(name)
    Path("folder").mkdir()
    assert "it has neither config.json" in complaint("./folder")
    Path("folder/model.safetensors").write_bytes(b"")
    assert "but no config.json" in complaint("folder")


# ---------------------------------------------------------------- the Hub


def test_a_hub_repository_is_downloaded(here, monkeypatch):
    make_run(here / "runs")
    folder = here / "runs/demo/checkpoints/sft/5-1"
    files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files["tokenizer.json"] = (here / "runs/demo/data/1234/tokenizer.json").read_bytes()
    files["chat_template.jinja"] = b"{{ messages }}"
    with hub_server() as hub:
        hub.add_repo("someone/tiny", "model", files)
        hub.use(monkeypatch, here / "hf")
        for name in ("someone/tiny", "hf://someone/tiny", "hf://someone/tiny@main"):
            found = find_model(name)
            assert (found.kind, found.chat) == ("export", True)
            assert is_seed(load_found(found)[0], 2)
        text = complaint("someone/else")
        assert "no such folder or run. Hub model someone/else: there is no such repository" in text


def test_a_hub_that_can_not_be_reached_is_said_to_be_so(here, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "Hub model someone/tiny: the Hub can't be reached" in complaint("hf://someone/tiny")

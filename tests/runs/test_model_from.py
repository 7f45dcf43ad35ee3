"""Runs that start from a model that somebody else has trained: `model: {from: …}`."""

import hashlib
import json
import math
import os
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pion.formats.load import load_decoder
from pion.formats.target_folder import is_export
from pipeline.cli import main
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from tests.pipeline.base.conftest import export_base
from tests.support.finished_run import tiny_tokenizer
from tests.support.hub_server import USER, hub_server
from tests.support.jobs import write_tiny_data
from tests.support.stock_models import saved, stock_model
from tests.support.whole_runs import ends_with, finish, head_of, kill, rows_trained, start, wait_for

SFT = {
    "steps": 6,
    "warmup_steps": 1,
    "global_batch": 4,
    "held_out": 0.1,
    "lr": 1e-2,
    "sources": [{"kind": "jsonl", "path": "talks.jsonl"}],
}


def write_job(folder, **changes):
    """Write the shortest job that starts from `base`, next to its data; return its path."""
    folder.mkdir(exist_ok=True)
    write_tiny_data(folder)
    if not (folder / "base").exists():
        export_base(folder / "base")
    job = {
        "name": "tiny",
        "model": {"from": "base"},
        "sft": SFT,
        "evaluate": {"rows": 4, "final_rows": 4, "continuations": 0, "prompts": ["a"]},
        "hardware": {"workers": 0},
        "store": str(folder / "runs"),
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(job | changes))
    return path


def bases_in(store):
    return sorted(path.name for path in (store / "_bases").iterdir())


def weights_of(folder, stage="sft"):
    model = find_model(f"{folder}/runs/tiny@{stage}")
    return load_file(model.folder / "model.safetensors")


@pytest.mark.soak
def test_a_run_begins_with_the_models_weights_tokenizer_and_context(tmp_path):
    # More rows than ids, as in many published models.
    folder = saved(stock_model("SmolLM2", vocab_size=320), tmp_path / "base")
    tiny_tokenizer().save(folder / "tokenizer.json")
    slow = SFT | {"steps": 1, "warmup_steps": 0, "lr": 1e-7, "min_lr": 0}
    job = write_job(tmp_path, sft=slow, model={"from": "base", "seq_len": 96})
    page = "---\nlicense: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n---\n"
    (tmp_path / "base" / "README.md").write_text(page)
    (tmp_path / "base" / "LICENSE.txt").write_text("the terms")
    output = finish(job, "publish.to=out")
    assert "starts from base (content " in output
    base, trained = (load_file(tmp_path / of / "model.safetensors") for of in ("base", "out"))
    assert base.keys() == trained.keys()
    assert max(float((base[name] - trained[name]).abs().max()) for name in base) < 1e-6
    vocabularies = [
        json.loads((tmp_path / of / "tokenizer.json").read_text())["model"]["vocab"]
        for of in ("base", "out")
    ]
    assert vocabularies[0] == vocabularies[1]
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["max_position_embeddings"] == 96
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == 320
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: other\nlicense_name: llama3.2\nlicense_link: LICENSE.txt\n" in card
    assert "# tiny\n\nBuilt with Llama." in card
    assert "trained from `base`" in card
    parameters = sum(tensor.numel() for tensor in base.values())
    assert f"| parameters | {parameters:,} |" in card
    assert "Its licence is other (llama3.2). In this folder are its files `LICENSE.txt`." in card
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "the terms"
    assert is_export(tmp_path / "out")  # so that the next run may replace it


@pytest.mark.soak
def test_without_steps_each_conversation_is_seen_three_times_in_batches_of_16(tmp_path):
    job = write_job(tmp_path, sft={"held_out": 0.1, "sources": SFT["sources"]})
    output = finish(job, "log.every=1")
    assert re.search(r"sft response loss +\d\.\d\d\d\n", output)
    (rows,) = re.findall(r"sft data: (\d+) rows", output)
    steps = math.ceil(3 * int(rows) / 16)
    assert f"sft step {steps}/{steps} " in output
    trained = rows_trained(tmp_path, "sft")
    assert trained[-1][1] == 16 * steps
    head = head_of(tmp_path)
    # Later commands know the steps from the store.
    assert main(["report", f"{tmp_path}/runs/tiny"]) == 0
    assert main(["check", str(job)]) == 0
    assert "same settings" in finish(job)
    assert head_of(tmp_path) == head


def test_a_folder_that_changes_alters_nothing_until_the_stage_is_redone(tmp_path):
    job = write_job(tmp_path)
    process = start(job, "checkpoint.every_steps=1", "sft.steps=100")
    wait_for(process, ": saved (")
    kill(process)
    shutil.rmtree(tmp_path / "base")
    export_base(tmp_path / "base", seed=1)
    output = finish(job, "sft.steps=100", "checkpoint.every_steps=100")
    assert "base has changed since this run began" in output
    assert "continues after step" in output
    kept = weights_of(tmp_path)
    assert len(bases_in(tmp_path / "runs")) == 1
    # Without its folder, the run still has its model.
    (tmp_path / "base").rename(tmp_path / "moved")
    assert main(["status", f"{tmp_path}/runs/tiny"]) == 0
    assert main(["report", f"{tmp_path}/runs/tiny"]) == 0
    assert "same settings" in finish(job, "sft.steps=100")
    (tmp_path / "moved").rename(tmp_path / "base")
    finish(job, "--redo", "sft")
    assert len(bases_in(tmp_path / "runs")) == 2
    redone = weights_of(tmp_path)
    assert any(not kept[name].equal(redone[name]) for name in kept)


def test_the_start_is_measured_once_before_the_first_step(tmp_path):
    job = write_job(tmp_path)
    (tmp_path / "old.txt").write_text("The quick brown fox.\n\nThe lazy dog.\n\nA new string.")
    process = start(job, "evaluate.text=old.txt")
    seen = wait_for(process, "evaluate: base model on other text")
    kill(process)
    assert "sft: starts" not in seen
    output = finish(job, "evaluate.text=old.txt")
    assert "base model on held-out conversations" not in output
    first = head_of(tmp_path).stages["evaluate"].result
    redone = finish(job, "evaluate.text=old.txt", "publish.to=out", "sft.lr=2e-2", "--redo", "sft")
    assert "base model" not in redone
    second = head_of(tmp_path).stages["evaluate"].result
    assert second["base"] == first["base"]
    assert second["sft"]["response_loss"] != first["sft"]["response_loss"]
    sha256 = hashlib.sha256((tmp_path / "old.txt").read_bytes()).hexdigest()
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"The other text is `old.txt` (sha256 `{sha256}`)." in card
    report = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    loss = second["base"]["text"]["bits_per_byte"]
    for shown in (card, report):
        assert f"{loss:.3f} ± " in shown
    assert sha256 in report


@pytest.mark.soak
def test_runs_of_one_store_keep_a_model_once_and_another_machine_has_it_from_there(
    tmp_path, s3, s3_store, monkeypatch
):
    first = write_job(tmp_path / "here", store=s3_store)
    finish(first, "sft.steps=1", "sft.warmup_steps=0")
    second = write_job(tmp_path / "there", store=s3_store, name="second")
    finish(second, "sft.steps=1", "sft.warmup_steps=0")
    shutil.rmtree(tmp_path / "here" / "base")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another-machine"))
    # More steps on another machine, which never had the folder.
    output = finish(first, "--redo", "evaluate", "sft.steps=1", "sft.warmup_steps=0")
    assert "evaluate: done" in output
    forked = f"{tmp_path}/forks/copy"
    assert main(["fork", f"{s3_store}/tiny", forked]) == 0
    assert len(bases_in(tmp_path / "forks")) == 1
    output = finish(
        first, f"store={tmp_path}/forks", "name=copy", "sft.steps=3", "sft.warmup_steps=0"
    )
    assert "continues after step 1" in output


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"from": "base", "d_ff": 8}}, "model.d_ff: the model that the run starts from"),
        ({"tokenizer": {"train": {}}}, "model.from brings its own tokenizer"),
        ({"sft": SFT | {"seq_len": 256}}, "sft.seq_len: 256 exceeds the model's context 128"),
        ({"model": {"from": "nowhere"}}, "line 10  model.from: no model 'nowhere'"),
        ({"model": {"from": ""}}, "it is empty: name a Hub repository"),
        ({"model": {"from": 3}}, "model.from: 3 should be text"),
        ({"evaluate": {"text": "gone.txt"}}, "evaluate.text: no such file or folder"),
    ],
)
def test_a_start_that_can_not_be_is_refused_with_its_line(tmp_path, changes, expected, capsys):
    assert main(["run", str(write_job(tmp_path, **changes))]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.soak
def test_a_model_whose_files_were_damaged_in_the_store_is_not_trained(tmp_path):
    job = write_job(tmp_path)
    process = start(job, "checkpoint.every_steps=1", "sft.steps=100")
    wait_for(process, ": saved (")
    kill(process)
    (name,) = bases_in(tmp_path / "runs")
    weights = tmp_path / "runs" / "_bases" / name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"good")
    output = ends_with(1, start(job, "--redo", "sft"))
    assert "has been altered (its sha256 differs)" in output
    assert head_of(tmp_path).epoch > 1


@pytest.mark.soak
def test_lora_on_a_model_of_the_hub_is_published_as_an_adapter_that_names_it(tmp_path, monkeypatch):
    folder = export_base(tmp_path / "published")
    lora = SFT | {"lora": {"rank": 2}, "lr": 1e-2}
    with hub_server() as hub:
        commit = hub.add_repo(
            "someone/tiny", "model", {p.name: p.read_bytes() for p in folder.iterdir()}
        )
        environment = os.environ | hub.environment(tmp_path / "hf")
        job = write_job(tmp_path, model={"from": "someone/tiny"}, sft=lora)
        output = ends_with(0, start(job, "publish.to=merged", env=environment))
        assert "adds LoRA of rank 2 to" in output
        adapter = start(
            job, "publish.to=adapter", "publish.adapter=true", "--redo", "publish", env=environment
        )
        ends_with(0, adapter)
        settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == "someone/tiny"
        assert settings["revision"] == commit
        assert "base_model: someone/tiny" in (tmp_path / "merged" / "README.md").read_text()
        public = (f"publish.to=hf://{USER}/mine", "publish.private=false", "--redo", "publish")
        output = ends_with(0, start(job, *public, env=environment))
        assert "nothing says under which licence someone/tiny is" in output
        hub.use(monkeypatch, tmp_path / "hf")
        merged, alone = (load_model(find_model(str(tmp_path / n))) for n in ("merged", "adapter"))
    tokens = torch.arange(3, 40)[None]
    torch.testing.assert_close(merged(tokens), alone(tokens))
    start_of_run = load_decoder(folder)
    assert not torch.allclose(merged(tokens), start_of_run(tokens), atol=1e-3)
    # The run itself has its model in its store, and asks nobody for it.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    own = load_model(find_model(f"{tmp_path}/runs/tiny"))
    torch.testing.assert_close(own(tokens), merged(tokens))

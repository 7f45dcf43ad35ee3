"""A run whose sft stage trains LoRA keeps every promise that other runs keep."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pion.model.parameters import tensors_sha256
from pipeline.base.find import find_base
from pipeline.cli import main
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from tests.support.whole_runs import (
    copy_run,
    ends_with,
    final_weights,
    finish,
    finish_after_kills,
    head_of,
    kill,
    rows_trained,
    start,
    wait_for,
    write_job,
)

STEPS = 40
LORA = {
    "sft__lora": {"rank": 4},
    "sft__lr": 1e-2,
    "sft__steps": STEPS,
    "hardware__threads": 1,
}
EACH_STEP = {"checkpoint__every_steps": 1, "log__every": 1}


def checkpoint(folder, stage="sft"):
    key = head_of(folder).stages[stage].checkpoint
    return folder / "runs/tiny" / key


def test_a_checkpoint_has_only_the_additions_and_the_hash_of_their_base(whole):
    folder = whole(**LORA)
    names = load_file(checkpoint(folder) / "model.safetensors").keys()
    assert len(names) == 2 * 7 * 2  # A and B of seven projections in two layers
    assert all(name.endswith((".lora_a", ".lora_b")) for name in names)
    record = json.loads((checkpoint(folder) / "adapter.json").read_text())
    assert record["base"]["name"] == head_of(folder).stages["pretrain"].checkpoint
    base = load_file(checkpoint(folder, "pretrain") / "model.safetensors")
    assert record["base"]["sha256"] == tensors_sha256(base)
    moments = {
        stage: (checkpoint(folder, stage) / "optimizer.safetensors").stat().st_size
        for stage in ("pretrain", "sft")
    }
    assert moments["sft"] < moments["pretrain"] / 5


@pytest.mark.soak
def test_sigkills_change_no_bit_of_the_additions(tmp_path, whole):
    unbroken = whole(**LORA)
    job = write_job(tmp_path, **LORA, **EACH_STEP)
    finish_after_kills(job, "sft", 1)
    assert final_weights(tmp_path) == final_weights(unbroken)
    assert rows_trained(tmp_path, "sft") == [[4 * s, 4 * s + 4] for s in range(STEPS)]


def test_every_command_merges_a_checkpoint_with_its_base(whole, tmp_path, capsys):
    run = str(whole(**LORA) / "runs" / "tiny")
    text = tmp_path / "text.txt"
    text.write_text("the cat saw two birds")
    for command in (
        ["eval", run, str(text)],
        ["generate", run, "--prompt", "the", "--max-tokens", "3"],
    ):
        assert main(command) == 0
    assert main(["export", run, str(tmp_path / "out")]) == 0
    merged, base = (load_model(find_model(f"{run}@{stage}")) for stage in ("sft", "pretrain"))
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert torch.equal(merged.embed.weight, base.embed.weight)
    assert not torch.equal(
        merged.state_dict()["blocks.0.attention.q_proj.weight"],
        base.state_dict()["blocks.0.attention.q_proj.weight"],
    )


def test_a_run_can_start_from_an_adapter_which_is_made_whole(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = f"{whole(**LORA)}/runs/tiny"
    found = find_base(run, tmp_path)
    merged = load_model(find_model(run)).state_dict()
    kept = load_file(found.bring("model.safetensors"))
    assert kept.keys() == merged.keys()
    assert all(torch.equal(kept[name], merged[name]) for name in kept)
    assert find_base(run, tmp_path).base.hash == found.base.hash
    assert find_base(f"{run}@pretrain", tmp_path).base.hash != found.base.hash


@pytest.mark.soak
def test_a_fork_of_an_adapter_takes_its_base_along(whole, tmp_path, capsys):
    run, fork = str(whole(**LORA) / "runs" / "tiny"), f"{tmp_path}/runs/fork"
    assert main(["fork", run, fork, "--stage", "sft"]) == 0
    whole_model, forked = (load_model(find_model(f"{name}@sft")) for name in (run, fork))
    assert tensors_sha256(whole_model.state_dict()) == tensors_sha256(forked.state_dict())
    found = find_model(f"{fork}@sft")
    assert (tmp_path / "runs/fork").resolve() in found.base.folder.resolve().parents
    job = write_job(tmp_path, **LORA, name="fork")
    assert "sft: done" in finish(job)


@pytest.mark.soak
def test_a_rounded_base_says_what_the_rounding_costs_and_resumes(tmp_path):
    rounded = {"sft__lora": {"rank": 4, "base_dtype": "bfloat16"}}
    job = write_job(tmp_path, **LORA | rounded, **EACH_STEP)
    process = start(job)
    started = wait_for(process, "sft: starts").splitlines()[-1]
    found = re.search(r"rounded to bfloat16: held-out loss (\S+) → ([\d.]+)", started)
    assert found is not None, started
    before, after = map(float, found.groups())
    assert abs(before - after) < 0.05
    wait_for(process, ": saved")
    kill(process)
    finish(job)
    record = json.loads((checkpoint(tmp_path) / "adapter.json").read_text())
    assert record["lora"]["base_dtype"] == "bfloat16"
    merged = load_model(find_model(str(tmp_path / "runs" / "tiny")))
    embed = merged.embed.weight.detach()
    assert torch.equal(embed, embed.bfloat16().float())


# ---------------------------------------------------------------- publishing


def test_an_adapter_is_published_and_read_with_its_base(tmp_path, whole, capsys):
    published = {"publish": {"to": "model", "adapter": True}}
    folder = whole(**LORA, **published)
    out = folder / "model"
    assert {path.name for path in out.iterdir()} == {
        "adapter.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "loss.png",
        "README.md",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "needs its base" in (out / "README.md").read_text()
    from_run = load_model(find_model(str(folder / "runs" / "tiny")))
    from_folder = load_model(find_model(str(out)))
    assert tensors_sha256(from_run.state_dict()) == tensors_sha256(from_folder.state_dict())
    assert main(["generate", str(out), "--prompt", "the", "--max-tokens", "3"]) == 0
    # Publishing again replaces the folder. The copy of the run is in another store.
    job, card = folder_of(folder, tmp_path, published), tmp_path / "model" / "README.md"
    assert "moved, remove the lines" in ends_with(2, start(job, "--redo", "publish"))
    kept = [line for line in card.read_text().splitlines() if not line.startswith(MARKS)]
    card.write_text("\n".join(kept))
    assert "publish: done" in finish(job, "--redo", "publish")


@pytest.mark.parametrize("command", ["run", "check"])
def test_an_adapter_of_another_base_is_refused_before_anything_is_started(
    tmp_path, whole, capsys, command
):
    folder = whole(**LORA, publish={"to": "model", "adapter": True})
    adapter = Path(shutil.copytree(folder / "model", tmp_path / "adapter"))
    record = json.loads((adapter / "adapter.json").read_text())
    record["base"]["sha256"] = "0" * 64
    (adapter / "adapter.json").write_text(json.dumps(record))
    changes = {"model": {"from": str(adapter)}, "tokenizer": None, "pretrain": None}
    assert main([command, str(write_job(tmp_path, **changes))]) == 2
    output = " ".join("".join(capsys.readouterr()).split())  # a table breaks lines
    assert "is an adapter of file:" in output
    assert "Bring back the base" in output
    assert not list((tmp_path / "runs").rglob("*.*"))


MARKS = ("model_name:", "pion_run:")


def folder_of(whole_run, folder, changes):
    """Copy a whole run, with its published model, and return its job."""
    shutil.copytree(whole_run / "model", folder / "model")
    # The adapter names its base by the run that published it.
    return copy_run(whole_run, folder, **LORA, **changes)


def test_an_adapter_of_a_base_that_exists_only_here_does_not_go_to_the_hub(tmp_path):
    job = write_job(tmp_path, **LORA, publish={"to": "hf://me/model", "adapter": True})
    output = ends_with(2, start(job))
    assert "publish.adapter: the base of the adapter, the pretrained model of this run" in output
    assert "exists only here" in output
    assert not (tmp_path / "runs").exists()


@pytest.mark.soak
def test_a_model_rounded_to_bfloat16_says_what_the_rounding_costs(whole):
    folder = whole(**LORA, publish={"to": "model", "dtype": "bfloat16"})
    weights = load_file(folder / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((folder / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    card = (folder / "model" / "README.md").read_text()
    found = re.search(
        r"logits differ by at most (\S+), and bits per byte were (\S+) before and are (\S+) after",
        card,
    )
    logits, before, after = map(float, found.groups())
    assert 0 < logits < 0.5
    assert 0 < abs(before - after) < 0.05
    assert find_model(str(folder / "model")).kind == "export"

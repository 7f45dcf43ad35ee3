"""A run whose stage `prefer` trains the additions of `sft` further keeps every promise, too."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from pipeline.state.head import REFERENCE
from tests.support.preference_runs import killed_in_the_pass, prefer_job
from tests.support.whole_runs import final_weights, finish, finish_after_kills, head_of, losses

LORA = {
    "sft__lora": {"rank": 4},
    "sft__lr": 1e-2,
    "prefer__lora": {"rank": 4},
    "checkpoint__every_steps": 1,
    "log__every": 1,
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    output = finish(prefer_job(folder, **LORA, publish={"to": "model", "adapter": True}))
    assert "prefer: starts (trains LoRA of sft further, of rank 4, on checkpoints/pre" in output
    return folder


def checkpoint(folder, stage):
    key = head_of(folder).stages[stage].checkpoint
    return folder / "runs/tiny" / key


def test_the_stage_starts_with_the_additions_and_their_model_is_the_reference(unbroken):
    first, *_ = losses(unbroken, "prefer")
    assert first == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    bases = [
        json.loads((checkpoint(unbroken, stage) / "adapter.json").read_text())["base"]
        for stage in ("sft", "prefer")
    ]
    assert bases[0] == bases[1]
    assert bases[0]["name"].startswith("checkpoints/pretrain/")
    tuned, further = (
        load_file(checkpoint(unbroken, stage) / "model.safetensors") for stage in ("sft", "prefer")
    )
    assert tuned.keys() == further.keys()
    for name, began in tuned.items():
        if name.endswith(".lora_b"):  # a new one would begin at 0
            assert 0 < float((further[name] - began).norm()) < 0.5 * float(began.norm()), name
    reference = unbroken / "runs" / head_of(unbroken).data[REFERENCE] / "reference.json"
    assert f"{bases[0]['sha256']} with additions " in json.loads(reference.read_text())["weights"]


def test_the_published_adapter_gives_the_trained_model(unbroken):
    found = find_model(str(unbroken / "runs/tiny"))
    base = find_model(f"{unbroken}/runs/tiny@pretrain")
    assert found.base.folder == base.folder
    tokens = torch.arange(8)[None]
    trained, published = (
        load_model(one)(tokens) for one in (found, find_model(str(unbroken / "model")))
    )
    torch.testing.assert_close(published, trained, rtol=0, atol=1e-5)
    results = head_of(unbroken).stages["evaluate"].result["prefer"]["preferences"]
    assert (results["start"], results["with_reference"]) == ("sft", True)


@pytest.mark.soak
def test_kills_in_the_pass_and_in_the_stage_change_no_bit(tmp_path, unbroken):
    job = prefer_job(tmp_path, **LORA)
    killed_in_the_pass(tmp_path, job, 2)
    output = finish_after_kills(job, "prefer", 1)
    assert "reference pass" not in output
    assert final_weights(tmp_path) == final_weights(unbroken)


@pytest.mark.soak
def test_a_fork_trains_its_own_copy_of_the_additions_further(tmp_path, unbroken):
    fork = ["fork", f"{unbroken}/runs/tiny", f"{tmp_path}/runs/tiny", "--stage", "sft"]
    assert main(fork) == 0
    finish(prefer_job(tmp_path, **LORA))
    assert final_weights(tmp_path) == final_weights(unbroken)

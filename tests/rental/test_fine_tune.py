"""The README's fine-tuning, rented: from a model on the Hub to another model on the Hub."""

import pytest

from tests.rental.rented import wait_until
from tests.rental.window import window
from tests.support.published_data import publish_data
from tests.support.published_models import publish_tiny

pytestmark = pytest.mark.rental

JOB = "jobs/smollm2-360m-sft.yaml"
BASE = "HuggingFaceTB/SmolLM2-360M-Instruct"


def test_a_model_of_the_hub_is_fine_tuned_on_a_rented_machine_and_published(rented, hub, tmp_path):
    publish_tiny(hub, BASE, tmp_path / "base")
    publish_data(hub)
    target = "tester/my-assistant"
    overrides = [
        f"store={rented.store}",
        f"publish.to=hf://{target}",
        "sft.global_batch=4",
        "hardware.workers=0",
    ]
    environment = hub.environment(tmp_path / "hf")
    with window(rented, "check", JOB, *overrides, **environment) as check:
        check.ends_with(0)
    with window(
        rented, "launch", JOB, "--on", "sky/runpod-spot.yaml", *overrides, **environment
    ) as launch:
        launch.ends_with(0)
    assert f"starts from {BASE} at commit" in rented.machines[0].job_log()
    (pod,) = rented.machines
    wait_until(lambda: not pod.alive, "the end of the machine")
    files = hub.files(target)
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files.keys()
    assert f"base_model: {BASE}".encode() in files["README.md"]
    with window(
        rented, "generate", target, "--prompt", "Boil", "--max-tokens", "3", **environment
    ) as said:
        said.ends_with(0)

"""An installed Pion in a folder of one's own: `launch` brings Pion to each machine as its wheel."""

import pytest

from tests.rental.rented import wait_until
from tests.rental.window import running
from tests.support.chat_templates import CHATML
from tests.support.installed_pion import build_and_install, write_questions
from tests.support.instruct_model import write_instruct_model

pytestmark = pytest.mark.rental

NAME = "questions"


def test_a_csv_becomes_a_published_model_although_its_machine_is_lost(rented, hub, tmp_path):
    _, target = build_and_install(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    write_questions(folder)
    write_instruct_model(folder / "base", "smollm2", CHATML)
    environment = hub.environment(tmp_path / "hf")
    environment["PYTHONPATH"] = f"{target}:{rented.environment['PYTHONPATH']}"

    def pion(*arguments):
        return running(rented, [target / "bin/pion", *arguments], cwd=folder, **environment)

    with pion("new", "questions.csv", "--from", "base") as new:
        new.ends_with(0)
    job = [f"{NAME}.yaml", "--on", "runpod-spot", f"store={rented.store}", "hardware.workers=0"]
    job += ["sft.epochs=60", "checkpoint.every_seconds=3", f"publish.to=hf://tester/{NAME}"]
    with pion("check", *job) as check:
        check.ends_with(0)
    with pion("launch", *job) as launch:
        first = rented.wait_for_machine(0)
        wait_until(lambda: first.job_log().count(": saved") >= 2, first.job_log)
        rented.loopback.runpod.preempt(first, notice=0.0, leaves="gone")
        second = rented.wait_for_machine(1)
        launch.ends_with(0)
    assert "continues after step" in second.job_log()
    wait_until(lambda: not second.alive, "the end of the machine")
    assert {"config.json", "model.safetensors", "README.md"} <= hub.files(f"tester/{NAME}").keys()
    assert {path.name for path in folder.iterdir()} == {
        "base",
        "questions.csv",
        "questions-chats.jsonl",
        "questions.yaml",
    }

import json
import subprocess
import sys
import tempfile
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import psutil
import pytest

from pion.errors import Interrupted
from pion.evaluation.item_scores import unpack
from pion.formats.export import export_model
from pipeline.stages.lm_eval import TaskRequest, hub_is_reachable, progress_of, run_task, wait_for
from pipeline.state.run_state import BY_ITEM
from tests.support.lm_eval_tasks import QUESTIONS, own_model, write_tasks
from tests.support.scripts import python_that
from tests.support.waiting import PATIENCE_SECONDS, wait_until


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch):
    monkeypatch.setattr("pipeline.stages.lm_eval.POLL_SECONDS", 0.02)


def asking(task, model, **changes):
    tokenizer = str(model.parent / "tokenizer.json")
    return TaskRequest(task=task, model=str(model), tokenizer=tokenizer, **changes)


# With a cap, the export has modelling files. By default, test_lm_eval_driver.py asks such tasks in
# its own process.
@pytest.mark.soak
@pytest.mark.parametrize("softcap", [30.0, None])
def test_a_task_of_ones_own_runs_offline_on_an_exported_model(softcap, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    write_tasks(tmp_path)
    (tmp_path / "torch.py").write_text("raise SystemExit('a file next to the job replaced torch')")
    model, tokenizer = own_model(softcap=softcap)
    # A path that would be several arguments in a list `key=value,…`.
    folder = tmp_path / "a model,dtype=float16,x={1}"
    tokenizer.save(tmp_path / "tokenizer.json")
    export_model(model, tmp_path / "tokenizer.json", folder)

    request = asking("local_choices", folder, include_path=str(tmp_path / "tasks"), limit=4)
    metrics = run_task(request, tmp_path)
    items = metrics.pop(BY_ITEM)
    asked = metrics.pop("asked")
    assert set(metrics) == {"acc", "acc_stderr"}
    assert metrics["acc"] in (0, 0.25, 0.5, 0.75, 1)
    assert (asked["form"], asked["questions"], asked["of"]) == ("text", 4, QUESTIONS)
    assert unpack(items["lm_eval.local_choices acc"]).scores.mean() == metrics["acc"]


# ---------------------------------------------------------------- tasks that can't run


@pytest.fixture
def offline(monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (
            "raise ConnectionError(\"Couldn't reach 'allenai/ai2_arc' on the Hub\")",
            "ConnectionError: Couldn't reach 'allenai/ai2_arc' on the Hub",
        ),
        (
            r"sys.exit('AssertionError: 1280 tokens\nrequests:   0%|  | 0/6 [00:01<?, ?it/s]')",
            "AssertionError: 1280 tokens",
        ),
        ("sys.exit(1)", "no message"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "lm-eval was killed by SIGKILL; out of memory? (no message)",
        ),
        ("pass", "no message"),
        (  # as NLTK complains
            r"raise LookupError('\n***\n  punkt is not here.\n  Get it.\n***\n')",
            "LookupError: punkt is not here. Get it.",
        ),
    ],
)
def test_a_task_that_fails_is_skipped_with_the_reason_it_gave(does, reason, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(does, tmp_path))
    assert run_task(asking("arc_easy", tmp_path)) == {"skipped": reason, BY_ITEM: {}}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    "does", ["raise KeyboardInterrupt", "os.kill(os.getpid(), signal.SIGTERM)"]
)
def test_a_task_ended_by_ctrl_c_is_not_taken_for_one_that_can_not_run(does, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(does, tmp_path))
    with pytest.raises(Interrupted, match="finished parts of the evaluation are saved"):
        run_task(asking("arc_easy", tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_folder_with_code_that_pion_did_not_write_is_not_trusted(tmp_path, monkeypatch):
    config = {"model_type": "pion", "auto_map": {"AutoConfig": "modeling_pion.PionConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "modeling_pion.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w')")
    reports = f"open({str(tmp_path / 'request')!r}, 'w').write(sys.argv[-1])"
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(reports, tmp_path))
    run_task(asking("arc_easy", tmp_path))
    request = TaskRequest.from_json((tmp_path / "request").read_text())
    assert (request.model, request.trusted) == (str(tmp_path), False)


HOLDS_THE_CARD = """
import subprocess, time
subprocess.Popen(["sleep", "1000"], start_new_session=True)
open("{here}/begun", "w").close()
time.sleep(1000)
"""


@pytest.mark.usefixtures("offline")
def test_a_stop_ends_every_process_of_a_task_that_is_going_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    does = HOLDS_THE_CARD.format(here=tmp_path)
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(does, tmp_path))
    others = psutil.Process().children(recursive=True)  # servers of other tests
    started = []

    def stop_once_it_runs(seconds):
        time.sleep(seconds)
        if (tmp_path / "begun").exists():
            now = psutil.Process().children(recursive=True)
            started.extend(process for process in now if process not in others)
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted, match="SIGTERM"):
        run_task(asking("arc_easy", tmp_path), sleep=stop_once_it_runs)
    assert len(started) >= 3  # the task, its child, and the reaper
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_SECONDS)
    assert not alive
    assert not list(Path(tempfile.gettempdir()).glob("pion-lm-eval-*"))


RUN_TASK = """
import sys
import pipeline.stages.lm_eval as tasks
tasks.PYTHON = sys.argv[1]
tasks.run_task(tasks.TaskRequest(task="arc_easy", model=sys.argv[2], tokenizer=""))
"""


@pytest.mark.usefixtures("offline")
def test_a_task_does_not_outlive_a_process_that_is_killed(tmp_path):
    python = python_that(HOLDS_THE_CARD.format(here=tmp_path), tmp_path)
    runs = subprocess.Popen([sys.executable, "-c", RUN_TASK, python, str(tmp_path)])
    wait_until(lambda: (tmp_path / "begun").exists() or runs.poll() is not None, "the task to run")
    assert runs.poll() is None
    started = psutil.Process(runs.pid).children(recursive=True)
    runs.kill()  # as when a deadline passes
    runs.wait(60)
    _, alive = psutil.wait_procs(started, timeout=PATIENCE_SECONDS)
    assert not alive


# ---------------------------------------------------------------- the network


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(401)

    def log_message(self, *_):
        pass


def test_a_hub_that_answers_at_all_is_reachable_and_a_closed_port_is_not(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert hub_is_reachable()
    server.shutdown()
    server.server_close()
    assert not hub_is_reachable()


@pytest.mark.parametrize(
    ("wish", "reachable", "expected"),
    [(None, lambda: True, "None None"), (None, lambda: False, "1 1"), ("1", None, "1 1")],
    ids=["the Hub answers", "it does not answer", "it is not even asked"],
)
def test_lm_eval_is_told_to_stay_offline_on_wish_or_where_the_hub_does_not_answer(
    wish, reachable, expected, tmp_path, monkeypatch
):
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    if wish is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", wish)
    monkeypatch.setattr("pipeline.stages.lm_eval.hub_is_reachable", reachable)
    names = "os.environ.get('HF_HUB_OFFLINE'), os.environ.get('HF_DATASETS_OFFLINE')"
    does = f"print({names}, file=sys.stderr); sys.exit(1)"
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(does, tmp_path))
    assert run_task(asking("arc_easy", tmp_path)) == {"skipped": expected, BY_ITEM: {}}


# ---------------------------------------------------------------- how far a task is


BAR = "Running generate_until requests:   9%|▉         | {done}/1319 [00:01<00:08,  1.19s/it]\r"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        ("Loading weights: 100%|██████████| 272/272 [00:00<00:00, 34.5it/s]", ""),
        (BAR.format(done=120), "120 of 1,319 requests"),
        (BAR.format(done=120) + "\n[transformers] a warning\n", "120 of 1,319 requests"),
        (BAR.format(done=120) + "x" * 5000, ""),
        ("x" * 5000 + BAR.format(done=120) + BAR.format(done=1300), "1,300 of 1,319 requests"),
    ],
)
def test_the_last_bar_counts(text, said, tmp_path):
    (tmp_path / "stderr").write_text(text)
    assert progress_of(tmp_path / "stderr") == said


def test_the_same_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stages.lm_eval.LOOKS", 2)
    said, left = [], [1, 1, 2, 2, 2, 2, 3, 3]
    process = SimpleNamespace(poll=lambda: None if left else 0)

    def sleep(_):
        (tmp_path / "stderr").write_text(BAR.format(done=left.pop(0)))

    wait_for(process, tmp_path / "stderr", sleep, said.append)
    assert said == [f"{done} of 1,319 requests" for done in (1, 2, 3)]


@pytest.mark.usefixtures("offline")
def test_a_task_that_takes_long_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.stages.lm_eval.LOOKS", 1)
    heard = tmp_path / "heard"
    does = f"""
import time
print({BAR.format(done=120)!r}, end="", file=sys.stderr, flush=True)
while not os.path.exists({str(heard)!r}):
    time.sleep(0.01)
sys.exit(1)
"""
    monkeypatch.setattr("pipeline.stages.lm_eval.PYTHON", python_that(does, tmp_path))
    said = []

    def say(progress):
        said.append(progress)
        heard.touch()

    run_task(asking("gsm8k", tmp_path), say=say)
    assert said == ["120 of 1,319 requests"]

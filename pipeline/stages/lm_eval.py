"""Runs tasks of lm-evaluation-harness on an exported model, each in a separate process.

A task that can't run gives the result {"skipped": reason}. Missing data, a missing package or too
little memory in that process must not fail the run.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pion.errors import Interrupted
from pipeline.machine.child_process import HUB, without_secrets
from pipeline.machine.own_files import how_to_install
from pipeline.state.run_state import BY_ITEM
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper

HUB_TIMEOUT = 5.0  # seconds
POLL_SECONDS = 0.2
PYTHON = sys.executable  # where lm-eval is installed
INSTALL = how_to_install("evaluate")
# evaluate.lm_eval.chat of a job.
Chat = Literal["auto", True, False]
# The file in the folder `out` with the answer: what `run_task` returns, as JSON.
ANSWER = "answer.json"


@dataclass(frozen=True, kw_only=True)
class TaskRequest:
    """What the evaluate stage asks of the process that runs a task of lm-eval. A path is a text,
    since it becomes JSON.

    Attributes:
        task: a task or a group of tasks, by lm-eval's name.
        model: the exported model's folder.
        tokenizer: the tokenizer.json next to the chat format that the model learned.
        include_path: a folder of the user's own task definitions.
        limit: the number of questions of each task; None for all.
        device: cpu or cuda.
        chat: which tasks are asked in the model's chat format: `evaluate.lm_eval.chat`.
        tuned: whether the model was trained on conversations.
        trusted: whether the modelling files in the model's folder are run. They are Pion's own.
        out: the folder for the answer.
    """

    task: str
    model: str
    tokenizer: str
    include_path: str | None = None
    limit: int | None = None
    device: str = "cpu"
    chat: Chat = "auto"
    tuned: bool = False
    trusted: bool = False
    out: str = ""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TaskRequest:
        return cls(**json.loads(text))


def run_task(
    asked: TaskRequest,
    working_folder: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda progress: None,
) -> dict[str, Any]:
    """Return what one task gives: its metrics by lm-eval's names ("acc", "acc_stderr", …;
    "exact_match,strict-match" where a task filters answers), and under "asked" how the model was
    asked; or {"skipped": reason}. Under BY_ITEM is the score of each question; see
    `lm_eval_results.items_of`.

    In `working_folder`, lm-eval looks for the files that the user's task definitions name.

    lm-eval runs the model's modelling files only if they are exactly those that this version of
    Pion writes. `sleep` is called while the task runs. If it raises, or this process ends for any
    reason, all processes of the task are killed. `say` gets each half minute how many requests of
    the task are answered. Raises Interrupted if a signal ended the task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        return _skipped(f"lm-eval is not installed here: {INSTALL}")
    with _reaped_folder() as out:
        errors = out / "stderr"  # a file, because an unread pipe fills up
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                _command(asked, out),
                cwd=working_folder,
                env=_environment() | {SESSION_VARIABLE: str(out)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that a Ctrl-C reaches only this process
            )
        try:
            wait_for(process, errors, sleep, say)
        finally:
            process.kill()  # does nothing if the process has ended
            process.wait()
        answer = out / ANSWER
        if process.returncode or not answer.exists():
            return _skipped(_reason(errors.read_text(errors="replace"), process.returncode))
        metrics: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return metrics


def _skipped(reason: str) -> dict[str, Any]:
    return {"skipped": reason, BY_ITEM: {}}


def _command(task_request: TaskRequest, out: Path) -> list[str]:
    from pion.formats.huggingface.bundled_code import runs_only_our_code

    trusted = runs_only_our_code(Path(task_request.model))
    request = dataclasses.replace(task_request, trusted=trusted, out=str(out))
    # -P: modules in the working folder, which is the user's, must not replace others.
    return [PYTHON, "-P", "-m", "pipeline.stages.lm_eval_driver", request.to_json()]


@contextmanager
def _reaped_folder() -> Iterator[Path]:
    """Make a temporary folder, and kill every process started with its name when the context ends.

    This also happens if this process is killed: lm-eval would keep using the card.
    """
    folder = Path(tempfile.mkdtemp(prefix="pion-lm-eval-"))
    reaper = start_reaper(folder)
    try:
        yield folder
    finally:
        reaper.communicate()  # closes its end of the pipe, and waits
        shutil.rmtree(folder, ignore_errors=True)


def hub_is_reachable() -> bool:
    """Return whether the Hub, or the mirror that HF_ENDPOINT names, answers at all."""
    try:
        urllib.request.urlopen(
            os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=HUB_TIMEOUT
        ).close()
    except (OSError, ValueError) as error:
        return isinstance(error, urllib.error.HTTPError)
    return True


def _environment() -> dict[str, str]:
    """Return this process's environment, set to offline if the Hub does not answer.

    Offline, cached data still works, and a task without cached data fails at once instead of
    waiting for timeouts.
    """
    environment = without_secrets(*HUB) | {"TOKENIZERS_PARALLELISM": "false"}
    if "HF_HUB_OFFLINE" not in environment and not hub_is_reachable():
        environment["HF_HUB_OFFLINE"] = "1"
    if environment.get("HF_HUB_OFFLINE", "0") != "0":
        environment["HF_DATASETS_OFFLINE"] = "1"
    return environment


def _reason(stderr: str, returncode: int) -> str:
    """Return the last exception of the traceback, with all its lines in one.

    Raises Interrupted if a signal ended the task.
    """
    # A bar of tqdm may come after the traceback. NLTK puts a message between lines of stars.
    lines = [line for line in stderr.splitlines() if line.strip("* ") and "%|" not in line]
    named = [i for i, line in enumerate(lines) if re.match(r"[\w.]+(:|$)", line)]
    last = " ".join(" ".join(lines[(named or [-1])[-1] :]).split())[:300] or "no message"
    if returncode in (-signal.SIGINT, -signal.SIGTERM) or last.startswith("KeyboardInterrupt"):
        raise Interrupted(
            "Interrupted while lm-eval was running. The finished parts of the evaluation are "
            "saved. Run the same command again to resume."
        )
    if returncode < 0:
        return f"lm-eval was killed by {signal.Signals(-returncode).name}; out of memory? ({last})"
    return last


# ---------------------------------------------------------------- how far a task is


# Between two lines, in looks.
LOOKS = 150
# Where the end of the file is searched.
LAST_BYTES = 4096
_BAR = re.compile(r"Running \w+ requests: +\d+%\|[^|]*\| (\d+)/(\d+) \[")


def wait_for(
    process: subprocess.Popen[bytes],
    errors: Path,
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> None:
    """Wait for the end of a task. After each LOOKS sleeps, `say` gets `120 of 1,319 requests`, if
    that has changed in `errors`, the task's standard error."""
    looks, last_progress = 0, ""
    while process.poll() is None:
        sleep(POLL_SECONDS)
        looks += 1
        if looks % LOOKS == 0 and (progress := progress_of(errors)) not in ("", last_progress):
            last_progress = progress
            say(progress)


def progress_of(errors: Path) -> str:
    """Return what the last bar in a file says; empty if there is none."""
    with errors.open("rb") as file:
        file.seek(max(0, errors.stat().st_size - LAST_BYTES))
        bars = _BAR.findall(file.read().decode(errors="replace"))
    return "" if not bars else f"{int(bars[-1][0]):,} of {int(bars[-1][1]):,} requests"

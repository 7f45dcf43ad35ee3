"""Runs tasks of lm-evaluation-harness on an exported model, each in a separate process.

A task that can't run gives the result {"skipped": reason}. Missing data, a missing package or too
little memory in that process must not fail the run.
"""

from __future__ import annotations

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pion.errors import Interrupted
from pion.formats.huggingface.tokenizer_files import TOKENIZER_FILE
from pipeline.machine.child_process import HUB, without_secrets
from pipeline.stages.lm_eval_progress import Progress
from pipeline.stages.lm_eval_request import ANSWER, TaskOptions, TaskRequest
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper

HUB_TIMEOUT = 5.0  # seconds
POLL_SECONDS = 0.2
PYTHON = sys.executable  # where lm-eval is installed
BATCH_SIZE = 8
INSTALL = "uv sync --group evaluate"


@dataclass(frozen=True)
class TaskScore:
    """What a task gave.

    Attributes:
        result: its metrics by lm-eval's names ("acc", "acc_stderr", …; "exact_match,strict-match"
            where a task filters answers), and under "asked" how the model was asked; or
            {"skipped": reason}.
        items: the score of each question; see `lm_eval_results.items_of`.
    """

    result: dict[str, Any]
    items: dict[str, Any] = field(default_factory=dict)


def run_task(
    task: str,
    model: Path,
    options: TaskOptions | None = None,
    working_folder: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda progress: None,
) -> TaskScore:
    """Return what one task gives for the exported model `model`.

    In `working_folder`, lm-eval looks for the files that the user's task definitions name.

    lm-eval runs the model's modelling files only if they are exactly those that this version of
    Pion writes. `sleep` is called while the task runs. If it raises, or this process ends for any
    reason, all processes of the task are killed. `say` gets each half minute how many requests of
    the task are answered. Raises Interrupted if a signal ended the task.
    """
    if importlib.util.find_spec("lm_eval") is None:
        return TaskScore({"skipped": f"lm-eval is not installed here: {INSTALL}"})
    with _reaped_folder() as out:
        errors = out / "stderr"  # a file, because an unread pipe fills up
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                _command(task, model, options or TaskOptions(), out),
                cwd=working_folder,
                env=_environment() | {SESSION_VARIABLE: str(out)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,  # so that a Ctrl-C reaches only this process
            )
        progress = Progress(errors, say)
        try:
            while process.poll() is None:
                sleep(POLL_SECONDS)
                progress.look()
        finally:
            process.kill()  # does nothing if the process has ended
            process.wait()
        answer = out / ANSWER
        if process.returncode or not answer.exists():
            said = errors.read_text(errors="replace")
            return TaskScore({"skipped": _reason(said, process.returncode)})
        return TaskScore(**json.loads(answer.read_text(encoding="utf-8")))


def _command(task: str, model: Path, options: TaskOptions, out: Path) -> list[str]:
    from pion.formats.huggingface.bundled_code import runs_only_our_code

    request = TaskRequest(
        **vars(options) | {"tokenizer": options.tokenizer or str(model.resolve() / TOKENIZER_FILE)},
        task=task,
        model=str(model.resolve()),
        trusted=runs_only_our_code(model),
        batch_size=BATCH_SIZE,
        out=str(out),
    )
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
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(endpoint, timeout=HUB_TIMEOUT).close()
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

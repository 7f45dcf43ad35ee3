"""A place where commands run alone: own folders, own price list, a Hub on this machine."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.cli import main
from tests.paths import JOBS, REPOSITORY, SKY, TESTS
from tests.pipeline.rent.conftest import SkyHome
from tests.support.hub_server import HubServer, hub_server
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.published_data import publish_data
from tests.support.published_models import REPOSITORIES, publish
from tests.support.sky_catalog import PRICES

GOLDEN = TESTS / "golden"
# By the name of a file: what is in it.
Texts = dict[str, str]
# What depends on the machine, the day or a draw, and what stands for it.
PLACEHOLDERS = (
    (r"commit \w{10} → \w+", "commit <old> → <new>"),
    (r"\bat (commit )?[0-9a-f]{12}\b", "at <commit>"),
    (r"http://127\.0\.0\.1:\d+", "<hub>"),
    (r"\b2030-03-17[ T]\d\d:\d\d(:\d\d)?( UTC|Z)?", "<now>"),
)


@dataclass
class Place:
    """The working directory `folder`, and what commands see from it."""

    folder: Path
    patch: pytest.MonkeyPatch
    home: SkyHome
    hub: HubServer

    def pion(self, *arguments: str) -> str:
        """Return a command line, what the command prints, and its exit code."""
        return f"$ pion {self.neutral(' '.join(arguments))}\n{self.printed(main, list(arguments))}"

    def printed(self, command: Callable[..., int], *arguments: Any) -> str:
        """Return what a function prints, and what it returns."""
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            try:
                code: Any = command(*arguments)
            except SystemExit as ended:
                code = ended.code
            except Exception:
                code = f"crash {traceback.format_exc()}"
        return self.neutral(f"{text.getvalue()}→ {code}\n")

    def neutral(self, text: str) -> str:
        for path, name in ((self.folder, "<here>"), (self.home.folder, "<home>")):
            text = text.replace(str(path), name)
        text = text.replace(str(REPOSITORY), "<repo>")
        for pattern, name in PLACEHOLDERS:
            text = re.sub(pattern, name, text)
        return text


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """Yield a new place. Nothing outside this machine is reached from it."""
    with contextlib.ExitStack() as stack:
        root = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="pion-golden-", dir="/tmp"))
        )
        stack.enter_context(contextlib.chdir(root))
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        hub = stack.enter_context(hub_server())
        here, home = root / "here", root / "home"
        here.mkdir()
        for folder in (JOBS, SKY):  # paths of one length everywhere, since tables break lines
            shutil.copytree(folder, here / folder.name)
        home.mkdir()
        for name in os.environ.keys() & {"HF_TOKEN", "FORCE_COLOR", "TTY_COMPATIBLE"}:
            patch.delenv(name)
        for name, value in {
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "RUNPOD_API_BASE_URL": "http://127.0.0.1:9",
            "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
            "COLUMNS": "120",
            "NO_COLOR": "1",
            "TERM": "dumb",
            "TZ": "UTC",
        }.items():
            patch.setenv(name, value)
        hub.use(patch, home / "hf", token=None)
        for repo in REPOSITORIES:
            publish(hub, repo, home / "published" / repo)
        publish_data(hub)
        # What is only said on a busy machine.
        patch.setattr(
            "pipeline.console.print_and_ask._shown", lambda words: contextlib.nullcontext()
        )
        # Another process for each template takes a second.
        patch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
        found = SkyHome(home, patch)
        found.sell(PRICES)
        patch.chdir(here)
        yield Place(here, patch, found, hub)


def processor() -> str:
    """Return what decides in which order a CPU adds, as the end of a file's name."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    known = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    kind = [known.get(key, "?") for key in ("model name", "cpu family", "model")]
    words = [*kind, torch.backends.cpu.get_cpu_capability(), "torch", torch.__version__]
    return "@" + "-".join(" ".join(words).split())

"""docs/first-rental.md, word by word: each command is run, and shows what the page says.

Outside of the page are only the bucket's name, the addresses and keys of the loopback RunPod and S3
(in the environment, as the page asks for the bucket's), and that pods here have no GPU.
"""

import time

import pytest

from tests.rental.rented import wait_until
from tests.rental.window import running
from tests.support.rehearsal import CTRL_C, ON_A_GPU, PAGE, REPEAT, first_unseen, steps_of
from tests.support.runpod_api import API_KEY

pytestmark = pytest.mark.rental

# What a person types or pastes when a command asks.
TYPED = {"runpod config\n": f"{API_KEY}\n"}


def test_every_command_of_the_page_shows_what_the_page_says(rented):
    bucket = rented.store.removeprefix("s3://").partition("/")[0]
    page = PAGE.read_text(encoding="utf-8").replace("my-bucket", bucket).replace(ON_A_GPU, "")
    (rented.loopback.home / ".runpod" / "config.toml").unlink()  # the page makes it
    for step in steps_of(page):
        begun = time.monotonic()
        rehearse(rented, step)
        print(f"{time.monotonic() - begun:.0f} s: {step.command}", flush=True)
    first, second = rented.machines
    assert not first.alive
    assert not second.alive


def rehearse(rented, step):
    """Run a step's command, again if the page says so. Fails if it does not show all lines."""
    code, said = None, ""

    def is_right():
        nonlocal code, said
        code, said = paste(rented, step)
        return code == step.code and first_unseen(step.lines, said) is None and "✗" not in said

    def what():
        return f"{step.command}{step.lines}\n… ended with {code}, and showed:\n{said}"

    if step.how == REPEAT:
        wait_until(is_right, what, every=2.0)
    else:
        assert is_right(), what()


def paste(rented, step):
    """Run a step's command, interrupted if the page says so; return its exit code and output."""
    command = ["bash", "-c", step.command]
    with running(rented, command, TYPED.get(step.command, "")) as window:

        def is_over():
            return window.process.poll() is not None

        def is_enough():
            return is_over() or first_unseen(step.lines, window.text) is None

        if step.how == CTRL_C:
            wait_until(is_enough, lambda: f"{step.lines} in:\n{window.text}")
            window.ctrl_c()
        wait_until(is_over, lambda: f"the end of {step.command}{window.text}")
        return window.process.returncode, window.text

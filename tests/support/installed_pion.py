"""Pion as people install it: its wheel in a folder, with the packages of this environment."""

import csv
import sys

from tests.paths import REPOSITORY
from tests.support.waiting import run_to_end


def build_and_install(folder):
    """Return the wheel, and the folder that it was installed into. PYTHONPATH must name the folder,
    and its bin/ has the command."""
    run_to_end(["uv", "build", "-q", "--wheel", "--out-dir", folder, REPOSITORY], check=True)
    (wheel,) = folder.glob("*.whl")
    # Compiled once here, by all cores, and not by each of the commands that run next to each other.
    install = ["uv", "pip", "install", "-q", "--no-deps", "--compile-bytecode"]
    install += ["--python", sys.executable]
    run_to_end([*install, "--target", folder / "installed", wheel], check=True)
    return wheel, folder / "installed"


def write_questions(folder):
    """Write questions.csv with 60 questions."""
    rows = [(f"What is {n} plus {n}?", f"It is {2 * n}.") for n in range(60)]
    with (folder / "questions.csv").open("w", encoding="utf-8") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])

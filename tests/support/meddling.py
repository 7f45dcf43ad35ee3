"""Replace functions of Pion in processes that a test starts, and check that this happened.

meddling = Meddling(tmp_path)
meddling.wrap("pion.train.feed:BatchFeed.take", '''
    def wrapper(original, self, next_row, skipped):
        return original(self, next_row, skipped)
''')
start(job, env=meddling.environment())
…
meddling.check()
"""

import json
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

# Python runs a `sitecustomize` on PYTHONPATH first, and would continue if it failed.
_SITECUSTOMIZE = """
import sys
if {inside!r} in " ".join(sys.orig_argv):
    import os, time, traceback
    from importlib import import_module
    from pathlib import Path
    HERE = Path({here!r})

    def wrap(target, wrapper):
        module, _, path = target.partition(":")
        *parents, name = path.split(".")
        owner = import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        original = getattr(owner, name)
        def wrapped(*arguments, **options):
            (HERE / ("called " + target)).touch()
            return wrapper(original, *arguments, **options)
        setattr(owner, name, wrapped)

    try:
{code}
    except BaseException:
        traceback.print_exc()
        os._exit(99)
"""


@dataclass
class Meddling:
    """What to replace in processes whose command line contains `inside`; its notes are in `folder`.

    The code may use `HERE`, which is `folder`, `time` and `import_module`.
    """

    folder: Path
    inside: str = "pipeline.cli"
    code: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)

    def run(self, code: str) -> None:
        """Run `code` when the process starts."""
        self.code.append(textwrap.dedent(code))

    def wrap(self, target: str, code: str) -> None:
        """Call `wrapper(original, *arguments)`, which `code` defines, for `module:name`."""
        self.run(code)
        self.run(f"wrap({json.dumps(target)}, wrapper)")
        self.targets.append(target)

    def environment(self) -> dict[str, str]:
        """Return the environment for a process in which functions are replaced."""
        folder = self.folder / "meddling"
        folder.mkdir(exist_ok=True)
        code = textwrap.indent("\n".join(self.code), " " * 8)
        text = _SITECUSTOMIZE.format(inside=self.inside, here=str(self.folder), code=code)
        (folder / "sitecustomize.py").write_text(text)
        before = os.environ.get("PYTHONPATH")
        path = f"{folder}{os.pathsep}{before}" if before else str(folder)
        return os.environ | {"PYTHONPATH": path}

    def called(self, target: str) -> bool:
        """Return whether a process has called the replacement of `target`."""
        return (self.folder / f"called {target}").exists()

    def check(self) -> None:
        """Fail unless every replacement was called."""
        for target in self.targets:
            assert self.called(target), f"nothing called {target}, so the test tested nothing"


def with_slow_steps(folder: Path) -> Meddling:
    """Let a training step take a moment longer, so that a save ends before the next one begins."""
    slow = Meddling(folder)
    slow.wrap(
        "pion.train.trainer:Trainer.train_step",
        """
        def wrapper(train_step, self, *arguments, **options):
            time.sleep(0.05)
            return train_step(self, *arguments, **options)
        """,
    )
    return slow


def with_held_steps(folder: Path, stage: str) -> Meddling:
    """Let each process train three steps of a stage, and then wait until somebody kills it."""
    held = Meddling(folder)
    held.wrap(
        "pipeline.training.loop:train_stage",
        """
        steps = {}
        def wrapper(train_stage, context, claim, stage, start):
            steps.update(stage=stage, begun=0)
            return train_stage(context, claim, stage, start)
        """,
    )
    held.wrap(
        "pion.train.trainer:Trainer.train_step",
        f"""
        def wrapper(train_step, self, *arguments, **options):
            steps["begun"] += 1
            while steps["stage"] == {stage!r} and steps["begun"] > 3:
                time.sleep(0.02)
            return train_step(self, *arguments, **options)
        """,
    )
    return held

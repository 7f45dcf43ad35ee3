"""Train a compiled decoder in this process, as two parts that a SIGKILL separates.

test_trainer_compiled.py starts it: `python -m tests.pion.train.compiled_training FOLDER PART`.
"""

import os
import signal
import sys
from pathlib import Path

from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.families.training import read_state, write_state
from tests.pion.train.conftest import open_stream, tiny_decoder

KILLED_AFTER, STEPS = 2, 4


def compiled_trainer(folder: Path) -> Trainer:
    settings = TrainSettings(steps=STEPS, global_batch=4, lr=1e-2)
    plan = ComputePlan(micro_batch=2, threads=1, compile=True)
    stream = open_stream(folder / f"data-{os.getpid()}")
    return Trainer(tiny_decoder(), stream, settings, plan)


def main(folder: Path, part: str) -> None:
    trainer = compiled_trainer(folder)
    if part == "resumed":
        trainer.load(read_state(folder / "saved"))
    while trainer.step < STEPS:
        assert trainer.train_step()
        if part == "killed" and trainer.step == KILLED_AFTER:
            write_state(trainer.state(), folder / "saved")
    assert trainer.plan.compile, "the compilation failed"
    write_state(trainer.state(), folder / part)
    if part == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    trainer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""A compiled run that is killed and resumed ends with the same bits, in another process."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest
import torch

from tests.families.training import read_state
from tests.paths import REPOSITORY
from tests.pion.train.compiled_training import KILLED_AFTER, STEPS
from tests.support.whole_runs import RUN_SECONDS


def train_in_a_process(folder, part, compiled):
    command = [sys.executable, "-m", "tests.pion.train.compiled_training", str(folder), part]
    # The C++ compiler fails at a path with a space, which the folder of tests may have.
    environment = {"TMPDIR": compiled, "TORCHINDUCTOR_CACHE_DIR": compiled}
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | environment, timeout=RUN_SECONDS
    ).returncode


@pytest.mark.soak
def test_a_compiled_run_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    with tempfile.TemporaryDirectory(prefix="pion-compiled-", dir="/tmp") as compiled:
        assert train_in_a_process(tmp_path, "killed", compiled) == -signal.SIGKILL
        assert train_in_a_process(tmp_path, "resumed", compiled) == 0
    saved, unbroken, resumed = (
        read_state(tmp_path / part) for part in ("saved", "killed", "resumed")
    )
    assert (saved.meta["step"], unbroken.meta["step"]) == (KILLED_AFTER, STEPS)
    assert resumed.meta["plan"]["compile"]
    for name, tensor in unbroken.model.items():
        assert torch.equal(tensor, resumed.model[name]), name
        assert not torch.equal(tensor, saved.model[name]), name

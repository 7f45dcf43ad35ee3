"""A good job file, and the message about a bad one."""

import pytest

from pion.errors import BadInput
from pipeline.job.file import load_job

GOOD = """\
name: tiny
model: pion-nano
tokenizer:
  train: {vocab_size: 512}
data:
  seq_len: 64
  sources:
    - kind: text
      path: corpus.txt
pretrain:
  steps: 20
  warmup_steps: 2
"""


@pytest.fixture
def job_file(tmp_path):
    def write(text=GOOD, name="job.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def complaint(path, *overrides):
    with pytest.raises(BadInput) as refused:
        load_job(path, overrides)
    assert refused.value.exit_code == 2
    return str(refused.value)

"""An error that crosses a pipe is the same error at the other end."""

import json

import pytest

from pion.errors import (
    BadInput,
    Fenced,
    Interrupted,
    NotDurable,
    Paused,
    PionError,
    Stopped,
    Trouble,
)
from pipeline.state.checkpoints.uploader import UploaderDied
from pipeline.state.record_json import Damaged
from pipeline.state.stores import Conflict, Missing, StoreError
from pipeline.state.stores.errors import error_from_json, error_to_json

ERRORS = [
    PionError("it failed; run it again"),
    BadInput("no such thing"),
    Fenced("somebody else owns it"),
    Stopped("stopped by request"),
    Paused("pretrain.pause_at is 7"),
    NotDurable("it could not be stored"),
    Interrupted("interrupted"),
    Trouble(7, (12, 16), "loss nan"),
    Missing("demo/HEAD.json", "s3://bucket"),
    Conflict("demo/HEAD.json", "s3://bucket"),
    StoreError("write", "s3://bucket/demo", "the service is down", outage=True),
    StoreError("write", "/disk/demo", "no space left on device"),
]


def sent(error):
    return error_from_json(json.loads(json.dumps(error_to_json(error))))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_class_text_exit_code_and_whether_waiting_may_help_stay(error):
    there = sent(error)
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert there.exit_code == error.exit_code
    for name in ("action", "where", "reason", "outage"):
        assert getattr(there, name, None) == getattr(error, name, None)


@pytest.mark.parametrize(
    ("error", "base"),
    [(UploaderDied("save", "pretrain/10-1", "it ended"), StoreError), (Damaged("torn"), BadInput)],
)
def test_an_unlisted_class_arrives_as_its_nearest_base(error, base):
    there = sent(error)
    assert type(there) is base
    assert str(there) == str(error)

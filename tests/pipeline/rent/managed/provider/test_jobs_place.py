"""Where a machine is, in SkyPilot's words."""

import dataclasses

import pytest

from pipeline.rent.managed.provider.jobs import Place, place_of
from tests.pipeline.rent.managed.look.test_diagnose import A40, A4000
from tests.support.fake_provider import JOB


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("1x[spot](A40:1, cpus=9, mem=50)", A40),
        ("1x(A40:1, cpus=9)", dataclasses.replace(A40, spot=False)),
        ("1x[spot](gpus=RTXA4000:1, 1x_RTXA4000_SEC..., ...)", A4000),
        ("1x(cpus=2, mem=8)", Place("RunPod", "CA", None, spot=False)),
        (None, Place("RunPod", "CA", None, spot=False)),
    ],
)
def test_a_machine_is_read_from_skypilots_words(words, place):
    assert place_of(dataclasses.replace(JOB, resources=words)) == place

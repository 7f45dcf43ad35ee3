"""The passes that a draft block saves are a part of an evaluation, like any other measure."""

import pytest

from pion.errors import Interrupted
from pipeline.job import Job
from tests.pipeline.stages.test_evaluate import Folder, World

FEW = {"continuations": 0, "ngram_order": 0, "final_rows": 4}
PARTS = [
    "pretrain.held_out",
    "pretrain.drafts",
    "pretrain.responses",
    "sft.held_out",
    "sft.drafts",
    "sft.responses",
]


class Drafted(World):
    """A world whose two models have draft blocks that learned nothing."""

    def job(self, **evaluate):
        fields = super().job(**FEW | evaluate).model_dump(mode="json", exclude_unset=True)
        fields["model"]["draft"] = {"steps": 2}
        job = Job.model_validate(fields)
        job._folder = self.root
        return job


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return Drafted(tmp_path_factory.mktemp("drafted"))


@pytest.mark.slow
def test_each_model_has_what_its_block_saves_and_after_a_stop_drafts_are_counted_again(world):
    whole = Folder()
    expected, every = world.run(world.job(), whole)
    assert list(whole.kept)[: len(PARTS)] == PARTS
    for stage in ("pretrain", "sft"):
        for found in (expected[stage]["drafts"][name] for name in ("greedy", "drawn")):
            assert found["texts"] == 4
            assert found["tokens_per_pass"] >= 1
    parts, passes = Folder(), 0

    def stop_after_five_passes(seconds):
        nonlocal passes
        passes += "pretrain.held_out" in parts.kept
        if passes == 5:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        world.run(world.job(), parts, sleep=stop_after_five_passes)
    assert list(parts.kept) == PARTS[:1]
    parts.kept |= {name: kept for name, kept in whole.kept.items() if name.startswith("sft")}
    assert world.run(world.job(), parts) == (expected, [*every[1:3], *every[len(PARTS) :]])

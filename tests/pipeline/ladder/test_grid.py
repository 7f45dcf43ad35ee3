"""Which runs a ladder has: smaller models that every job allows, cheapest first."""

from __future__ import annotations

import pytest

from pion.errors import BadInput
from pipeline.base.read_job import read_job
from pipeline.ladder.grid import Grid, Rung, rungs_of
from pipeline.ladder.points import Point as Result
from pipeline.ladder.points import check_points
from tests.paths import REPOSITORY


def rungs(name: str, grid: Grid | None = None) -> list[Rung]:
    return rungs_of(read_job(REPOSITORY / "jobs" / f"{name}.yaml"), grid or Grid())


@pytest.mark.parametrize(
    "name", ["demo", "demo-daisy", "demo-pilon", "pion-small", "tachyon-tiny", "daisy-280m"]
)
def test_every_family_has_a_ladder_of_jobs_that_are_valid_and_can_be_fitted(name: str) -> None:
    found = rungs(name)
    assert len(found) == 16
    assert [rung.flops for rung in found] == sorted(rung.flops for rung in found)
    check_points([Result(rung.name, rung.macs_per_token, rung.tokens, 1.0) for rung in found])
    own = read_job(REPOSITORY / "jobs" / f"{name}.yaml")
    for rung in (found[0], found[-1]):
        job = read_job(REPOSITORY / "jobs" / f"{name}.yaml", rung.overrides)
        assert job.stages == ["prepare", "pretrain", "evaluate"]
        section = job.section("pretrain")
        assert section.total_steps * section.global_batch * job.data.seq_len == rung.tokens
        config = job.model_config_resolved()
        assert config.head_dim == own.model_config_resolved().head_dim
        assert config.d_model < own.model_config_resolved().d_model


def test_depth_follows_the_width_unless_the_model_names_its_layers() -> None:
    assert {rung.shape for rung in rungs("demo-prefer")} == {"64x2", "96x2", "128x3", "192x4"}
    layers = read_job(REPOSITORY / "jobs" / "demo-daisy.yaml").model_config_resolved().n_layers
    assert {rung.shape.partition("x")[2] for rung in rungs("demo-daisy")} == {str(layers)}


def test_all_runs_share_prepared_data() -> None:
    from pipeline.job.digest import digest_job

    own = digest_job(read_job(REPOSITORY / "jobs" / "demo.yaml", ["sft=null"])).data
    for rung in rungs("demo"):
        job = read_job(REPOSITORY / "jobs" / "demo.yaml", rung.overrides)
        assert digest_job(job).data == own


def test_held_out_runs_come_last_and_are_the_largest_or_beyond_the_grid() -> None:
    found = rungs("demo-prefer", Grid(held_out=4))
    assert [rung.held_out for rung in found] == [False] * 12 + [True] * 4
    assert found[12].flops > found[11].flops
    found = rungs("demo-prefer", Grid(beyond=((1.0, 0.5), (0.7, 0.5))))
    assert [rung.shape for rung in found[16:]] == ["192x4", "256x6"]
    assert all(rung.held_out for rung in found[16:])


def test_a_preset_keeps_its_other_fields() -> None:
    rung = rungs("pion-small")[0]
    job = read_job(REPOSITORY / "jobs" / "pion-small.yaml", rung.overrides)
    own = read_job(REPOSITORY / "jobs" / "pion-small.yaml").model_config_resolved()
    config = job.model_config_resolved()
    assert (config.vocab_size, config.seq_len) == (own.vocab_size, own.seq_len)


def test_shares_that_round_to_the_same_model_are_refused() -> None:
    with pytest.raises(BadInput, match="would be the same: a model of 64x2"):
        rungs("demo-prefer", Grid(widths=(0.25, 0.26, 0.5)))

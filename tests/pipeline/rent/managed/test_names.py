"""The names of rentals."""

from __future__ import annotations

from pipeline.rent.managed.names import rental_name


def test_a_managed_job_is_named_for_its_run_alone() -> None:
    name = rental_name("s3://bucket/runs", "pion-small")
    assert name.startswith("pion-pion-small-")
    assert rental_name("s3://bucket/runs/", "pion-small") == name
    assert rental_name("s3://bucket/other", "pion-small") != name
    assert rental_name("s3://bucket/runs", "pion-Small") != name


def test_any_run_name_makes_a_name_that_skypilot_accepts() -> None:
    from sky.utils.common_utils import check_cluster_name_is_valid

    for run in ("a", "a+b@c=d", "_", "x" * 100, "Größe"):
        name = rental_name("s3://bucket", run)
        check_cluster_name_is_valid(name)
        assert len(name) <= 54

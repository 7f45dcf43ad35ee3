"""What SkyPilot's records say about clusters, including those of managed jobs."""

import pytest

from pipeline.rent.managed.provider.provider import Provider


def record(status, name="pion-demo-1"):
    """Return the record of one cluster; the status None means that it has ended."""
    from sky.utils.status_lib import ClusterStatus

    return {"name": name, "status": None if status is None else ClusterStatus(status)}


@pytest.fixture
def records(monkeypatch):
    """SkyPilot's records; the controller is here."""
    from sky import global_user_state

    records = []

    def history(*, cluster_names):
        return [record for record in records if record["name"] in cluster_names]

    monkeypatch.setattr(Provider, "controller_is_here", lambda _: True)
    monkeypatch.setattr(global_user_state, "get_clusters_from_history", history)
    return records


@pytest.mark.parametrize(
    ("statuses", "status"),
    # One record for each machine that the job has had.
    [([None, None], None), (["UP", None], "UP"), ([None, "UP"], "UP")],
)
def test_a_cluster_has_ended_when_every_machine_of_that_name_has(records, statuses, status):
    records += [*map(record, statuses), record("UP", "pion-other-1")]
    assert Provider().clusters_recorded({"pion-demo-1"}) == {"pion-demo-1": status}


def test_a_cluster_without_a_record_is_left_out(records):
    records.append(record(None, "pion-other-1"))
    assert Provider().clusters_recorded({"pion-demo-1"}) == {}


def test_the_records_are_those_of_a_controller_on_this_machine(records, monkeypatch):
    monkeypatch.setattr(Provider, "controller_is_here", lambda _: False)
    records.append(record(None))
    assert Provider().clusters_recorded({"pion-demo-1"}) == {}

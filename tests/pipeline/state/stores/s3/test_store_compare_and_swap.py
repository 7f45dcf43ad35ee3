"""The conditional write: lost acknowledgements, lost races, and services that ignore conditions."""

import pytest

from pion.errors import BadInput
from pipeline.state.stores import Conflict, StoreError
from pipeline.state.stores.s3.store import S3Store


def test_a_swap_whose_acknowledgement_is_lost_is_a_swap(store, proxy):
    proxy.fail("PUT", kind="drop_after", times=2)
    version = store.compare_and_swap("HEAD.json", b"1", None)
    proxy.fail("PUT", kind="drop_after", times=2)
    version = store.compare_and_swap("HEAD.json", b"2", version)
    assert store.read_versioned("HEAD.json") == (b"2", version)


def test_a_swap_that_another_writer_has_followed_is_a_conflict(store, proxy, patience, bucket, s3):
    proxy.fail("PUT", kind="drop_after")
    other = s3.client()
    patience.during = lambda: other.put_object(Bucket=bucket, Key="runs/HEAD.json", Body=b"theirs")
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD.json", b"ours", None)
    assert store.read("HEAD.json") == b"theirs"


def test_a_swap_that_met_another_one_in_flight_is_tried_again(store, proxy):
    proxy.fail("PUT", status=409, code="ConditionalRequestConflict", times=2)
    store.compare_and_swap("HEAD.json", b"1", None)
    assert proxy.count("PUT") == 3


def test_a_service_that_knows_versions_only_without_their_quotes_is_used(store, proxy):
    """Ceph's gateway. The form is found once, also by a process that does not probe."""
    proxy.etag_form = lambda etag: '"' not in etag
    store.probe("demo/")
    first = store.compare_and_swap("HEAD.json", b"1", None)
    other = S3Store(store._bucket.name, "runs")
    second = other.compare_and_swap("HEAD.json", b"2", first)
    with pytest.raises(Conflict):
        other.compare_and_swap("HEAD.json", b"3", first)
    proxy.requests.clear()
    third = other.compare_and_swap("HEAD.json", b"4", second)
    assert len(proxy.requests) == 1
    assert store.read_versioned("HEAD.json") == (b"4", third)


def test_a_service_that_refuses_the_version_it_names_is_refused_and_nobody_tries_for_ever(
    store, proxy
):
    proxy.etag_form = lambda etag: False
    reason = "refuses a write with If-Match although its condition holds"
    with pytest.raises(BadInput, match=f"{reason}.*Nothing was started"):
        store.probe("demo/")
    version = store.compare_and_swap("HEAD.json", b"1", None)
    with pytest.raises(StoreError, match=reason):
        store.compare_and_swap("HEAD.json", b"2", version)


def test_swapping_a_version_of_what_was_deleted_is_a_conflict(store):
    version = store.compare_and_swap("HEAD.json", b"1", None)
    store.delete("HEAD.json")
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD.json", b"2", version)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (
            {"ignored_headers": {"if-none-match"}},
            "127.0.0.1:.* ignores if-none-match.*two mach",
        ),
        ({"ignored_headers": {"if-match"}}, "127.0.0.1:.* ignores if-match.*two machines could"),
        ({"brings_back": True}, "ignores If-Match once an object is deleted"),
        ({}, "the store can't do that .*Nothing was started"),
    ],
    ids=["ignores If-None-Match", "ignores If-Match", "brings back", "does not know conditions"],
)
def test_a_store_that_does_not_keep_to_conditions_is_refused_with_the_reason(
    store, proxy, how, why
):
    if not how:
        proxy.deny("NotImplemented", 501, match="PUT")
    for name, value in how.items():
        setattr(proxy, name, value)
    with pytest.raises(BadInput, match=f"(?i){why}"):
        store.probe("demo/")
    proxy.clear()
    assert store.list() == []

"""Uploading objects to S3: only the part that fails is sent again."""

import pytest

from pipeline.state.stores import StoreError
from tests.pipeline.state.stores.s3.conftest import PART, unfinished_uploads
from tests.support.contents import content


def test_a_connection_that_breaks_on_the_way_up_repeats_one_part(store, proxy):
    proxy.fail("PUT .*partNumber=3", kind="drop_before", times=2)
    data = content(5 * PART + 1)
    store.write("demo/model", data)
    assert store.read("demo/model", len(data)) == data
    assert proxy.count("POST .*[?]uploads") == 1
    assert [proxy.count(f"PUT .*partNumber={n}$") for n in range(1, 7)] == [1, 1, 3, 1, 1, 1]
    assert proxy.count("POST .*uploadId") == 1


def test_an_object_has_no_more_parts_than_s3_takes(store, proxy, monkeypatch):
    monkeypatch.setattr("pipeline.state.stores.s3.bucket._MOST_PARTS", 3)
    data = content(3 * PART + 1)
    store.write("demo/model", data)
    assert store.read("demo/model", len(data)) == data
    assert proxy.count("PUT .*partNumber") == 3


@pytest.mark.parametrize("size", [1000, 3 * PART])
def test_what_is_damaged_on_the_way_up_is_refused_and_sent_again(store, proxy, size):
    proxy.fail("PUT", kind="flip")
    store.write("demo/model", content(size))
    assert store.read("demo/model") == content(size)


# What services answer to the header of a checksum: Backblaze B2, Cloudflare R2 until 2025, S3 to
# any header that it does not know.
REFUSALS = [
    (400, "InvalidArgument", "Unsupported header '{}' received for this API call."),
    (501, "NotImplemented", "Header '{}' with value 'AAAA' not implemented"),
    (501, "NotImplemented", "A header you provided implies functionality that is not implemented"),
]


QUICK = ((REFUSALS[0], "."), (REFUSALS[1], "POST"))


@pytest.mark.parametrize(
    ("refusal", "method"),
    [
        pytest.param(refusal, method, marks=() if (refusal, method) in QUICK else pytest.mark.soak)
        for refusal in REFUSALS
        for method in (".", "POST")
    ],
)
def test_a_service_that_refuses_checksums_is_used_and_what_went_up_is_read_back(
    store, proxy, refusal, method
):
    """POST: it takes checksums of whole objects, but none of parts."""
    proxy.refuse_checksums(*refusal, method=method)
    said = store.probe("demo/")
    assert ("refuses checksums. So Pion reads back all that it writes" in said) == (method == ".")
    store.write("demo/model", content(3 * PART + 1))
    store.write("demo/empty", b"")
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    store.compare_and_swap("demo/HEAD.json", b"2", version)
    assert [store.read(f"demo/{name}") for name in ("model", "empty", "HEAD.json")] == [
        content(3 * PART + 1),
        b"",
        b"2",
    ]


@pytest.mark.parametrize(("size", "damaged"), [(1000, "PUT"), (3 * PART, "PUT .*partNumber=2")])
def test_what_is_damaged_on_the_way_up_is_found_where_checksums_are_refused(
    store, proxy, size, damaged
):
    proxy.refuse_checksums(*REFUSALS[0])
    store.write("demo/first", b"")
    proxy.fail(damaged, kind="flip")
    with pytest.raises(StoreError, match="read back differs from what was written") as caught:
        store.write("demo/model", content(size))
    assert caught.value.outage
    store.write("demo/model", content(size))


def test_a_swap_that_another_writer_has_replaced_is_not_called_damaged(
    store, proxy, patience, bucket, s3
):
    proxy.refuse_checksums(*REFUSALS[0])
    store.write("demo/first", b"")
    proxy.fail("GET .*HEAD.json")
    other = s3.client()
    patience.during = lambda: other.put_object(Bucket=bucket, Key="runs/HEAD.json", Body=b"2")
    version = store.compare_and_swap("HEAD.json", b"1", None)
    assert store.read_versioned("HEAD.json")[1] != version


def test_an_upload_that_fails_for_good_leaves_no_parts_to_pay_for(store, proxy, s3, bucket):
    store.write("demo/model", b"old")
    proxy.deny("InternalError", 500, match="PUT .*partNumber=2")
    with pytest.raises(StoreError, match="500 InternalError") as caught:
        store.write("demo/model", content(4 * PART))
    assert caught.value.outage
    assert unfinished_uploads(s3, bucket) == []
    assert store.read("demo/model") == b"old"


def test_a_completed_upload_whose_acknowledgement_is_lost_is_complete(store, proxy):
    proxy.fail("POST .*uploadId", kind="drop_after")
    proxy.fail("POST .*uploadId", status=404, code="NoSuchUpload")  # as S3 may say to the next try
    store.write("demo/model", content(3 * PART))
    assert store.read("demo/model") == content(3 * PART)


@pytest.mark.parametrize("present", [None, b"of another writer"])
def test_an_upload_that_vanished_before_it_was_complete_is_an_error(store, proxy, present):
    if present is not None:
        store.write("demo/model", present)
    proxy.fail("POST .*uploadId", status=404, code="NoSuchUpload")
    with pytest.raises(StoreError, match="NoSuchUpload"):
        store.write("demo/model", content(3 * PART))


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(store, proxy, patience, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(content(20 * PART))
    proxy.fail("POST .*[?]uploads")
    patience.during = lambda: source.write_bytes(b"")
    with pytest.raises(StoreError, match=f"Cannot read {source}: the file became shorter"):
        store.write("demo/model", source)
    assert store.list() == []


def test_a_file_that_cannot_be_read_is_named(store, tmp_path):
    with pytest.raises(StoreError, match=f"Cannot read {tmp_path}/nothing"):
        store.write("demo/model", tmp_path / "nothing")

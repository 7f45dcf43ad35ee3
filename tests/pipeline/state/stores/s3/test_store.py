"""The S3 store: its name, what it reads and lists, and what it tidies up and probes."""

import pytest

from pion.errors import BadInput
from pipeline.state.stores import Entry, Missing, StoreError, open_store
from pipeline.state.stores.s3.store import S3Store
from tests.pipeline.state.stores.s3.conftest import PART, unfinished_uploads
from tests.support.contents import content, sha256
from tests.support.waiting import rest_of

# Names


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("s3://my-bucket/runs/of/mine", "s3://my-bucket/runs/of/mine"),
        ("s3://my-bucket/runs/", "s3://my-bucket/runs"),
        ("s3://my.bucket.2/", "s3://my.bucket.2"),
        ("s3://my-bucket", "s3://my-bucket"),
    ],
)
def test_a_store_is_a_bucket_with_or_without_a_prefix(url, opened):
    assert open_store(url).url == opened


@pytest.mark.parametrize(
    "url",
    [
        *("s3://", "s3:///runs", "s3://ab", "s3://" + 64 * "x", "s3://My_Bucket/runs"),
        *("s3://a..b", "s3://-abc", "s3://abc-", "s3://bucket//runs", "s3://bucket/../runs"),
        *("s3://bucket/.hidden", "s3://bucket/a b"),
    ],
)
def test_a_name_that_s3_does_not_allow_is_refused_with_the_right_form(url):
    with pytest.raises(BadInput, match="s3://bucket/prefix"):
        open_store(url)


def test_opening_a_store_and_naming_keys_wrongly_asks_nothing_of_it(proxy, bucket):
    store = open_store(f"s3://{bucket}/runs")
    with pytest.raises(BadInput):
        store.read("../HEAD.json")
    with pytest.raises(BadInput):
        store.list("../")
    assert proxy.requests == []


def test_without_a_bucket_the_aws_sdk_is_not_imported(start):
    code = """
import sys
from pipeline.state.stores import open_store
open_store("runs")
print([name for name in ("boto3", "botocore", "huggingface_hub") if name in sys.modules])
"""
    assert rest_of(start(code)) == "[]\n"


def test_stores_side_by_side_in_a_bucket_do_not_see_each_other(proxy, bucket, s3):
    runs, runs2, whole = S3Store(bucket, "runs"), S3Store(bucket, "runs2"), S3Store(bucket)
    runs.write("demo/a", b"1")
    runs2.write("demo/b", b"2")
    s3.client().put_object(Bucket=bucket, Key="runs/", Body=b"")  # a console's idea of a folder
    assert runs.list() == [Entry("demo/a", 1)]
    assert runs2.list() == [Entry("demo/b", 1)]
    assert [entry.key for entry in whole.list()] == ["runs/demo/a", "runs2/demo/b"]
    with pytest.raises(Missing):
        runs.read("demo/b")


def test_a_list_of_several_pages_is_complete_though_one_breaks(store, proxy):
    keys = [f"demo/{number}" for number in range(7)]
    for key in keys:
        store.write(key, b"")
    proxy.page_size = 2
    proxy.fail("GET", kind="reset", after=2)
    assert [entry.key for entry in store.list("demo/")] == keys
    assert proxy.count("GET") == 5


# Fetching


def test_a_small_value_damaged_on_the_way_down_is_read_again(store, proxy):
    store.write("demo/HEAD.json", content(1000))
    proxy.fail("GET", kind="flip")
    assert store.read("demo/HEAD.json") == content(1000)


@pytest.mark.parametrize("how", ["reset", "truncate"])
def test_a_connection_that_breaks_on_the_way_down_repeats_at_most_one_range(
    store, proxy, tmp_path, how
):
    data = content(4 * PART)
    store.write("demo/model", data)
    proxy.fail(f"GET .*bytes={PART}-", kind=how)
    assert store.download("demo/model", tmp_path / "model") == sha256(data)
    assert (tmp_path / "model").read_bytes() == data
    last_bytes = [request.rpartition("-")[2] for request in proxy.requests if "bytes=" in request]
    # Every range once, and the broken one (or what was left of it) again. The first range says the
    # object's size.
    ends = [PART - 1, 2 * PART - 1, 2 * PART - 1, 3 * PART - 1, 4 * PART - 1]
    assert sorted(map(int, last_bytes)) == ends


def test_an_object_replaced_during_a_download_is_never_mixed(
    store, proxy, patience, bucket, s3, tmp_path
):
    target = tmp_path / "model"
    target.write_bytes(b"old file")
    store.write("demo/model", content(4 * PART))
    proxy.fail(f"GET .*bytes={2 * PART}-")
    other = s3.client()
    patience.during = lambda: other.put_object(
        Bucket=bucket, Key="runs/demo/model", Body=bytes(4 * PART)
    )
    with pytest.raises(StoreError, match="replaced during the download") as caught:
        store.download("demo/model", target)
    assert caught.value.outage
    assert target.read_bytes() == b"old file"
    assert list(tmp_path.iterdir()) == [target]


def test_an_object_deleted_during_a_download_is_missing(
    store, proxy, patience, bucket, s3, tmp_path
):
    store.write("demo/model", content(4 * PART))
    proxy.fail(f"GET .*bytes={2 * PART}-")
    other = s3.client()
    patience.during = lambda: other.delete_object(Bucket=bucket, Key="runs/demo/model")
    with pytest.raises(Missing, match="demo/model"):
        store.download("demo/model", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Tidying up


def test_uploads_of_dead_writers_are_swept_when_old_enough(store, s3, bucket):
    client = s3.client()
    for name in ("runs/demo/model", "runs/demo/optimizer", "runs/another/model"):
        client.create_multipart_upload(Bucket=bucket, Key=name)
    begun = client.list_multipart_uploads(Bucket=bucket)["Uploads"][0]["Initiated"].timestamp()
    assert store.sweep_unfinished("demo/", before=begun - 60) == 0
    assert store.sweep_unfinished("demo/", before=begun + 60) == 2
    assert unfinished_uploads(s3, bucket) == ["runs/another/model"]


# Probing


def test_a_probe_takes_12_requests_and_leaves_nothing(store, proxy):
    assert store.probe("demo/") == ""
    # Two more if the service knows versions only without their quotes.
    assert len(proxy.requests) == (14 if store._bare_etags else 12)
    assert store.list() == []


@pytest.mark.parametrize(
    "forbidden", ["PUT", r"GET .*/probe", r"GET .*list-type", r"GET .*[?]uploads", "DELETE"]
)
def test_the_probe_finds_every_missing_permission(store, proxy, forbidden):
    proxy.deny(match=forbidden)
    with pytest.raises(BadInput, match=r"access was denied.*s3:GetObject.*Nothing was started"):
        store.probe("demo/")


def test_a_bucket_that_does_not_exist_is_refused_with_the_command_that_makes_it(proxy):
    with pytest.raises(BadInput, match="`aws s3 mb s3://nobody-has-this`"):
        S3Store("nobody-has-this", "runs").probe("demo/")


def test_a_store_that_is_down_is_not_called_bad_input(store, proxy):
    proxy.deny("ServiceUnavailable", 503)
    with pytest.raises(StoreError) as caught:
        store.probe("demo/")
    assert caught.value.outage

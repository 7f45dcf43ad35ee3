"""The S3 store: only what fails is retried, and permanent errors are explained."""

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, SSLError

from pion.errors import BadInput, PionError
from pipeline.state.stores import Conflict, Entry, Missing, StoreError, open_store
from pipeline.state.stores.s3 import bucket as bucket_module
from pipeline.state.stores.s3 import errors
from pipeline.state.stores.s3.store import S3Store
from tests.support.contents import content, sha256
from tests.support.s3_server import (
    ACCESS_KEY,
    SECRET_KEY,
    SMALLEST_PART,
    FaultProxy,
    Kind,
    S3Server,
)
from tests.support.waiting import rest_of

PART = max(SMALLEST_PART, 100_000)


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.bucket()


class Patience:
    """A store's `sleep` that records each wait, calls `during`, and passes no time."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self.during: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.during()


@pytest.fixture
def patience() -> Patience:
    return Patience()


@pytest.fixture
def store(proxy: FaultProxy, bucket: str, patience: Patience) -> S3Store:
    """A store in an empty bucket, whose clients go through `proxy`."""
    return S3Store(bucket, "runs", upload_bytes=PART, download_bytes=PART, sleep=patience.sleep)


def unfinished_uploads(s3: S3Server, bucket: str) -> list[str]:
    answer = s3.client().list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in answer.get("Uploads", [])]


Start = Callable[..., subprocess.Popen[str]]


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
def test_a_store_is_a_bucket_with_or_without_a_prefix(url: str, opened: str) -> None:
    assert open_store(url).url == opened


@pytest.mark.parametrize(
    "url",
    [
        *("s3://", "s3:///runs", "s3://ab", "s3://" + 64 * "x", "s3://My_Bucket/runs"),
        *("s3://a..b", "s3://-abc", "s3://abc-", "s3://bucket//runs", "s3://bucket/../runs"),
        *("s3://bucket/.hidden", "s3://bucket/a b"),
    ],
)
def test_a_name_that_s3_does_not_allow_is_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(BadInput, match="s3://bucket/prefix"):
        open_store(url)


def test_opening_a_store_and_naming_keys_wrongly_asks_nothing_of_it(
    proxy: FaultProxy, bucket: str
) -> None:
    store = open_store(f"s3://{bucket}/runs")
    with pytest.raises(BadInput):
        store.read("../HEAD.json")
    with pytest.raises(BadInput):
        store.list("../")
    assert proxy.requests == []


def test_without_a_bucket_the_aws_sdk_is_not_imported(start: Start) -> None:
    code = """
import sys
from pipeline.state.stores import open_store
open_store("runs")
print([name for name in ("boto3", "botocore", "huggingface_hub") if name in sys.modules])
"""
    assert rest_of(start(code)) == "[]\n"


def test_stores_side_by_side_in_a_bucket_do_not_see_each_other(
    proxy: FaultProxy, bucket: str, s3: S3Server
) -> None:
    runs, runs2, whole = S3Store(bucket, "runs"), S3Store(bucket, "runs2"), S3Store(bucket)
    runs.write("demo/a", b"1")
    runs2.write("demo/b", b"2")
    s3.client().put_object(Bucket=bucket, Key="runs/", Body=b"")  # a console's idea of a folder
    assert runs.list() == [Entry("demo/a", 1)]
    assert runs2.list() == [Entry("demo/b", 1)]
    assert [entry.key for entry in whole.list()] == ["runs/demo/a", "runs2/demo/b"]
    with pytest.raises(Missing):
        runs.read("demo/b")


def test_a_list_of_several_pages_is_complete_though_one_breaks(
    store: S3Store, proxy: FaultProxy
) -> None:
    keys = [f"demo/{number}" for number in range(7)]
    for key in keys:
        store.write(key, b"")
    proxy.page_size = 2
    proxy.fail("GET", kind="reset", after=2)
    assert [entry.key for entry in store.list("demo/")] == keys
    assert proxy.count("GET") == 5


# Fetching


def test_a_small_value_damaged_on_the_way_down_is_read_again(
    store: S3Store, proxy: FaultProxy
) -> None:
    store.write("demo/HEAD.json", content(1000))
    proxy.fail("GET", kind="flip")
    assert store.read("demo/HEAD.json") == content(1000)


@pytest.mark.parametrize("how", ["reset", "truncate"])
def test_a_connection_that_breaks_on_the_way_down_repeats_at_most_one_range(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, how: Any
) -> None:
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
    store: S3Store, proxy: FaultProxy, patience: Patience, bucket: str, s3: S3Server, tmp_path: Path
) -> None:
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
    store: S3Store, proxy: FaultProxy, patience: Patience, bucket: str, s3: S3Server, tmp_path: Path
) -> None:
    store.write("demo/model", content(4 * PART))
    proxy.fail(f"GET .*bytes={2 * PART}-")
    other = s3.client()
    patience.during = lambda: other.delete_object(Bucket=bucket, Key="runs/demo/model")
    with pytest.raises(Missing, match="demo/model"):
        store.download("demo/model", tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Transient errors


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500, "code": "InternalError"},
        {"status": 503, "code": "SlowDown"},
        {"status": 429, "code": "TooManyRequests"},
        {"status": 400, "code": "RequestTimeout"},
        {"kind": "drop_before"},
        {"kind": "drop_after"},
    ],
    ids=lambda fault: fault.get("code") or fault["kind"],
)
def test_transient_errors_are_retried_by_one_policy(
    store: S3Store, proxy: FaultProxy, patience: Patience, fault: dict[str, Any]
) -> None:
    proxy.fail("PUT", times=3, **fault)
    store.write("demo/HEAD.json", b"{}")
    assert proxy.count("PUT") == 4  # the SDK's own retries would make it more
    assert len(patience.waits) == 3
    assert store.read("demo/HEAD.json") == b"{}"


def test_the_store_waits_as_long_as_the_server_asks(
    store: S3Store, proxy: FaultProxy, patience: Patience
) -> None:
    proxy.fail("PUT", code="SlowDown", headers={"Retry-After": "31"})
    store.write("demo/HEAD.json", b"{}")
    assert patience.waits == [31.0]


def test_a_refusal_cut_off_before_its_reason_is_retried(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail("GET", kind="truncate", times=2)
    with pytest.raises(Missing):
        store.read("demo/nothing")
    assert proxy.count("GET") == 3


def test_a_request_without_an_answer_is_retried(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_module, "READ_SECONDS", 0.5)
    proxy.fail("PUT", kind="delay", seconds=3600)
    version = store.compare_and_swap("demo/HEAD.json", b"{}", None)
    assert proxy.count("PUT") == 2
    assert store.read_versioned("demo/HEAD.json") == (b"{}", version)


def test_new_credentials_are_found_during_the_run(
    store: S3Store,
    proxy: FaultProxy,
    patience: Patience,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    credentials = tmp_path / "credentials"

    def write_credentials(access_key: str) -> None:
        credentials.write_text(
            f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = x\n"
        )

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    write_credentials("AKIAOLD")
    store.write("demo/a", b"1")
    proxy.deny("ExpiredToken", 400, access_key="AKIAOLD")
    patience.during = lambda: write_credentials("AKIANEW") if len(patience.waits) == 2 else None
    store.write("demo/a", b"2")
    assert store.read("demo/a") == b"2"
    assert len(patience.waits) == 2


# Permanent errors


@pytest.mark.parametrize(
    ("code", "status", "outage", "fix"),
    [
        ("SlowDown", 503, True, "503 SlowDown"),
        ("RequestTimeTooSkewed", 403, True, r"clock is wrong; set it \(timedatectl"),
        ("AccessDenied", 403, False, r"s3:PutObject.* on bucket bucket-"),
        ("QuotaExceeded", 403, False, "no room left in bucket.*quota"),
        ("UserSuspended", 403, False, "has suspended this account"),
        ("InvalidAccessKeyId", 403, False, "AWS_ACCESS_KEY_ID.*`aws configure`"),
        ("SignatureDoesNotMatch", 403, False, "AWS_SECRET_ACCESS_KEY.*`aws configure`"),
        ("NoSuchBucket", 404, False, r"`aws s3 mb s3://bucket-"),
        ("IllegalLocationConstraintException", 400, False, "set AWS_REGION"),
        ("EntityTooLarge", 400, False, "400 EntityTooLarge"),
    ],
)
def test_permanent_errors_name_the_fix_and_no_secret(
    store: S3Store,
    proxy: FaultProxy,
    tmp_path: Path,
    code: str,
    status: int,
    outage: bool,
    fix: str,
) -> None:
    proxy.deny(code, status)
    calls: list[Callable[[], Any]] = [
        lambda: store.read("demo/a"),
        lambda: store.write("demo/a", b"x"),
        lambda: store.write("demo/a", content(2 * PART)),
        lambda: store.compare_and_swap("demo/a", b"x", None),
        lambda: store.list("demo/"),
        lambda: store.delete("demo/a"),
        lambda: store.download("demo/a", tmp_path / "a"),
        lambda: store.sweep_unfinished("demo/", before=0.0),
    ]
    for call in calls:
        proxy.requests.clear()
        with pytest.raises(StoreError, match=fix) as caught:
            call()
        assert caught.value.outage is outage
        # HEAD: the SDK asks for the bucket's region.
        assert proxy.count("^(?!HEAD)") == (8 if outage else 1)
        assert SECRET_KEY not in str(caught.value)
        assert ACCESS_KEY not in str(caught.value)


def test_expired_credentials_are_an_outage_with_its_fix(
    store: S3Store, proxy: FaultProxy, patience: Patience
) -> None:
    proxy.deny("ExpiredToken", 400)
    with pytest.raises(StoreError, match=r"expired; put new ones into ~/.aws/cred") as caught:
        store.read("demo/HEAD.json")
    assert caught.value.outage
    assert len(patience.waits) == 7


def test_a_service_that_is_not_there_is_an_outage_that_names_it(
    bucket: str, patience: Patience, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:9 sent no complete response") as caught:
        S3Store(bucket, sleep=patience.sleep).read("demo/HEAD.json")
    assert caught.value.outage
    assert len(patience.waits) == 7


@pytest.mark.parametrize(
    ("name", "value", "error", "says"),
    [
        ("AWS_ACCESS_KEY_ID", None, StoreError, r"AWS_ACCESS_KEY_ID.*`aws configure`"),
        ("AWS_PROFILE", "nobody", StoreError, r"nobody.*AWS_PROFILE"),
        ("AWS_ENDPOINT_URL", "no url", BadInput, "AWS_ENDPOINT_URL must look like"),
    ],
)
def test_a_wrong_environment_is_named(
    store: S3Store,
    patience: Patience,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str | None,
    error: type[PionError],
    says: str,
) -> None:
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=says) as caught:
        store.read("demo/HEAD.json")
    assert not getattr(caught.value, "outage", False)
    assert patience.waits == []


# Tidying up


def test_uploads_of_dead_writers_are_swept_when_old_enough(
    store: S3Store, s3: S3Server, bucket: str
) -> None:
    client = s3.client()
    for name in ("runs/demo/model", "runs/demo/optimizer", "runs/another/model"):
        client.create_multipart_upload(Bucket=bucket, Key=name)
    begun = client.list_multipart_uploads(Bucket=bucket)["Uploads"][0]["Initiated"].timestamp()
    assert store.sweep_unfinished("demo/", before=begun - 60) == 0
    assert store.sweep_unfinished("demo/", before=begun + 60) == 2
    assert unfinished_uploads(s3, bucket) == ["runs/another/model"]


# Probing


def test_a_probe_takes_12_requests_and_leaves_nothing(store: S3Store, proxy: FaultProxy) -> None:
    assert store.probe("demo/") == ""
    # Two more if the service knows versions only without their quotes.
    assert len(proxy.requests) == (14 if store._bare_etags else 12)
    assert store.list() == []


@pytest.mark.parametrize(
    "forbidden", ["PUT", r"GET .*/probe", r"GET .*list-type", r"GET .*[?]uploads", "DELETE"]
)
def test_the_probe_finds_every_missing_permission(
    store: S3Store, proxy: FaultProxy, forbidden: str
) -> None:
    proxy.deny(match=forbidden)
    with pytest.raises(BadInput, match=r"access was denied.*s3:GetObject.*Nothing was started"):
        store.probe("demo/")


def test_a_bucket_that_does_not_exist_is_refused_with_the_command_that_makes_it(
    proxy: FaultProxy,
) -> None:
    with pytest.raises(BadInput, match="`aws s3 mb s3://nobody-has-this`"):
        S3Store("nobody-has-this", "runs").probe("demo/")


def test_a_store_that_is_down_is_not_called_bad_input(store: S3Store, proxy: FaultProxy) -> None:
    proxy.deny("ServiceUnavailable", 503)
    with pytest.raises(StoreError) as caught:
        store.probe("demo/")
    assert caught.value.outage


# ---------------------------------------------------------------- uploads


def test_a_connection_that_breaks_on_the_way_up_repeats_one_part(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.fail("PUT .*partNumber=3", kind="drop_before", times=2)
    data = content(5 * PART + 1)
    store.write("demo/model", data)
    assert store.read("demo/model", len(data)) == data
    assert proxy.count("POST .*[?]uploads") == 1
    assert [proxy.count(f"PUT .*partNumber={n}$") for n in range(1, 7)] == [1, 1, 3, 1, 1, 1]
    assert proxy.count("POST .*uploadId") == 1


def test_an_object_has_no_more_parts_than_s3_takes(
    store: S3Store, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.state.stores.s3.bucket._MOST_PARTS", 3)
    data = content(3 * PART + 1)
    store.write("demo/model", data)
    assert store.read("demo/model", len(data)) == data
    assert proxy.count("PUT .*partNumber") == 3


@pytest.mark.parametrize("size", [1000, 3 * PART])
def test_what_is_damaged_on_the_way_up_is_refused_and_sent_again(
    store: S3Store, proxy: FaultProxy, size: int
) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("method", [".", "POST"])
def test_a_service_that_refuses_checksums_is_used_and_what_went_up_is_read_back(
    store: S3Store, proxy: FaultProxy, refusal: tuple[int, str, str], method: str
) -> None:
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
    store: S3Store, proxy: FaultProxy, size: int, damaged: str
) -> None:
    proxy.refuse_checksums(*REFUSALS[0])
    store.write("demo/first", b"")
    proxy.fail(damaged, kind="flip")
    with pytest.raises(StoreError, match="read back differs from what was written") as caught:
        store.write("demo/model", content(size))
    assert caught.value.outage
    store.write("demo/model", content(size))


def test_a_swap_that_another_writer_has_replaced_is_not_called_damaged(
    store: S3Store, proxy: FaultProxy, patience: Patience, bucket: str, s3: S3Server
) -> None:
    proxy.refuse_checksums(*REFUSALS[0])
    store.write("demo/first", b"")
    proxy.fail("GET .*HEAD.json")
    other = s3.client()
    patience.during = lambda: other.put_object(Bucket=bucket, Key="runs/HEAD.json", Body=b"2")
    version = store.compare_and_swap("HEAD.json", b"1", None)
    assert store.read_versioned("HEAD.json")[1] != version


def test_an_upload_that_fails_for_good_leaves_no_parts_to_pay_for(
    store: S3Store, proxy: FaultProxy, s3: S3Server, bucket: str
) -> None:
    store.write("demo/model", b"old")
    proxy.deny("InternalError", 500, match="PUT .*partNumber=2")
    with pytest.raises(StoreError, match="500 InternalError") as caught:
        store.write("demo/model", content(4 * PART))
    assert caught.value.outage
    assert unfinished_uploads(s3, bucket) == []
    assert store.read("demo/model") == b"old"


def test_a_completed_upload_whose_acknowledgement_is_lost_is_complete(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.fail("POST .*uploadId", kind="drop_after")
    proxy.fail("POST .*uploadId", status=404, code="NoSuchUpload")  # as S3 may say to the next try
    store.write("demo/model", content(3 * PART))
    assert store.read("demo/model") == content(3 * PART)


@pytest.mark.parametrize("present", [None, b"of another writer"])
def test_an_upload_that_vanished_before_it_was_complete_is_an_error(
    store: S3Store, proxy: FaultProxy, present: bytes | None
) -> None:
    if present is not None:
        store.write("demo/model", present)
    proxy.fail("POST .*uploadId", status=404, code="NoSuchUpload")
    with pytest.raises(StoreError, match="NoSuchUpload"):
        store.write("demo/model", content(3 * PART))


def test_a_file_that_shrinks_while_it_is_sent_is_an_error(
    store: S3Store, proxy: FaultProxy, patience: Patience, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(content(20 * PART))
    proxy.fail("POST .*[?]uploads")
    patience.during = lambda: source.write_bytes(b"")
    with pytest.raises(StoreError, match=f"Cannot read {source}: the file became shorter"):
        store.write("demo/model", source)
    assert store.list() == []


def test_a_file_that_cannot_be_read_is_named(store: S3Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"Cannot read {tmp_path}/nothing"):
        store.write("demo/model", tmp_path / "nothing")


# ---------------------------------------------------------------- conditional writes


def test_a_swap_whose_acknowledgement_is_lost_is_a_swap(store: S3Store, proxy: FaultProxy) -> None:
    proxy.fail("PUT", kind="drop_after", times=2)
    version = store.compare_and_swap("HEAD.json", b"1", None)
    proxy.fail("PUT", kind="drop_after", times=2)
    version = store.compare_and_swap("HEAD.json", b"2", version)
    assert store.read_versioned("HEAD.json") == (b"2", version)


def test_a_swap_that_another_writer_has_followed_is_a_conflict(
    store: S3Store, proxy: FaultProxy, patience: Patience, bucket: str, s3: S3Server
) -> None:
    proxy.fail("PUT", kind="drop_after")
    other = s3.client()
    patience.during = lambda: other.put_object(Bucket=bucket, Key="runs/HEAD.json", Body=b"theirs")
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD.json", b"ours", None)
    assert store.read("HEAD.json") == b"theirs"


def test_a_swap_that_met_another_one_in_flight_is_tried_again(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.fail("PUT", status=409, code="ConditionalRequestConflict", times=2)
    store.compare_and_swap("HEAD.json", b"1", None)
    assert proxy.count("PUT") == 3


def test_a_service_that_knows_versions_only_without_their_quotes_is_used(
    store: S3Store, proxy: FaultProxy
) -> None:
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
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.etag_form = lambda etag: False
    reason = "refuses a write with If-Match although its condition holds"
    with pytest.raises(BadInput, match=f"{reason}.*Nothing was started"):
        store.probe("demo/")
    version = store.compare_and_swap("HEAD.json", b"1", None)
    with pytest.raises(StoreError, match=reason):
        store.compare_and_swap("HEAD.json", b"2", version)


def test_swapping_a_version_of_what_was_deleted_is_a_conflict(store: S3Store) -> None:
    version = store.compare_and_swap("HEAD.json", b"1", None)
    store.delete("HEAD.json")
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD.json", b"2", version)


@pytest.mark.parametrize("ignored", ["if-none-match", "if-match"])
def test_a_store_that_ignores_conditions_is_refused_with_the_reason(
    store: S3Store, proxy: FaultProxy, ignored: str
) -> None:
    proxy.ignored_headers = {ignored}
    with pytest.raises(BadInput, match=f"(?i)127.0.0.1:.* ignores {ignored}.*two machines could"):
        store.probe("demo/")
    proxy.clear()
    assert store.list() == []


def test_a_store_that_lets_a_swap_bring_back_what_was_deleted_is_refused(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.brings_back = True
    with pytest.raises(BadInput, match="ignores If-Match once an object is deleted"):
        store.probe("demo/")
    assert store.list() == []


def test_a_store_that_does_not_know_conditions_is_refused(
    store: S3Store, proxy: FaultProxy
) -> None:
    proxy.deny("NotImplemented", 501, match="PUT")
    with pytest.raises(BadInput, match=r"the store can't do that .*Nothing was started"):
        store.probe("demo/")


# ---------------------------------------------------------------- answers that are not from S3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["page", "nothing", "half"])
def test_what_is_not_an_answer_of_s3_is_asked_again_and_then_an_outage(
    store: S3Store, proxy: FaultProxy, tmp_path: Path, kind: Kind
) -> None:
    version = store.compare_and_swap("demo/HEAD.json", b"first", None)
    store.write("demo/large", content(2 * PART))
    listed = [Entry("demo/HEAD.json", 5), Entry("demo/large", 2 * PART)]
    calls: list[tuple[Callable[[], Any], Any]] = [
        (lambda: store.read_versioned("demo/HEAD.json"), (b"first", version)),
        (lambda: store.list("demo/"), listed),
        (lambda: store.download("demo/large", tmp_path / "large"), sha256(content(2 * PART))),
        (lambda: store.sweep_unfinished("demo/", before=0.0), 0),
        (lambda: store.write("demo/large", content(2 * PART)), None),
        (lambda: store.write("demo/small", b"x"), None),
        (lambda: store.compare_and_swap("demo/HEAD.json", b"first", version), version),
    ]
    for call, result in calls:
        for after in range(4):  # the first, second, … request of this call
            proxy.fail(".", kind=kind, after=after)
            assert call() == result
            proxy.clear()
        proxy.fail(".", kind=kind, times=math.inf)
        with pytest.raises(StoreError, match=r"127\.0\.0\.1.*check|500") as caught:
            call()
        assert caught.value.outage
        proxy.clear()


@pytest.mark.parametrize(
    ("reason", "passes"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed", False),
        ("[Errno 2] No such file or directory", False),  # of AWS_CA_BUNDLE
        ("EOF occurred in violation of protocol", True),
    ],
)
def test_a_certificate_that_is_not_trusted_does_not_pass_by_itself(
    reason: str, passes: bool
) -> None:
    error = SSLError(endpoint_url="https://127.0.0.1", error=reason)
    assert errors.is_transient(error) == errors.is_outage(error) == passes
    assert ("AWS_CA_BUNDLE" in errors.explain(error, "bucket", "here")) != passes


def test_a_service_that_gives_no_reason_gets_no_words_for_one() -> None:
    """Ceph's gateway answers without messages."""
    answer: Any = {"Error": {"Code": "AccessDenied", "Message": None}}
    answer["ResponseMetadata"] = {"HTTPStatusCode": 403}
    reason = errors.explain(ClientError(answer, "PutObject"), "bucket", "here")
    assert reason.startswith("access was denied (AccessDenied); the credentials need")

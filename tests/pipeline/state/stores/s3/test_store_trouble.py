"""The S3 store: only what fails is retried, and permanent errors are explained."""

import pytest

from pion.errors import BadInput
from pipeline.state.stores import Missing, StoreError
from pipeline.state.stores.s3 import bucket as bucket_module
from pipeline.state.stores.s3.store import S3Store
from tests.pipeline.state.stores.s3.conftest import PART
from tests.support.contents import content
from tests.support.s3_server import ACCESS_KEY, SECRET_KEY

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
def test_transient_errors_are_retried_by_one_policy(store, proxy, patience, fault):
    proxy.fail("PUT", times=3, **fault)
    store.write("demo/HEAD.json", b"{}")
    assert proxy.count("PUT") == 4  # the SDK's own retries would make it more
    assert len(patience.waits) == 3
    assert store.read("demo/HEAD.json") == b"{}"


def test_the_store_waits_as_long_as_the_server_asks(store, proxy, patience):
    proxy.fail("PUT", code="SlowDown", headers={"Retry-After": "31"})
    store.write("demo/HEAD.json", b"{}")
    assert patience.waits == [31.0]


def test_a_refusal_cut_off_before_its_reason_is_retried(store, proxy):
    proxy.fail("GET", kind="truncate", times=2)
    with pytest.raises(Missing):
        store.read("demo/nothing")
    assert proxy.count("GET") == 3


def test_a_request_without_an_answer_is_retried(store, proxy, monkeypatch):
    monkeypatch.setattr(bucket_module, "READ_SECONDS", 0.5)
    proxy.fail("PUT", kind="delay", seconds=3600)
    version = store.compare_and_swap("demo/HEAD.json", b"{}", None)
    assert proxy.count("PUT") == 2
    assert store.read_versioned("demo/HEAD.json") == (b"{}", version)


def test_new_credentials_are_found_during_the_run(store, proxy, patience, tmp_path, monkeypatch):
    credentials = tmp_path / "credentials"

    def write_credentials(access_key):
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
        ("ExpiredToken", 400, True, r"expired; put new ones into ~/.aws/cred"),
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
    store, proxy, tmp_path, code, status, outage, fix
):
    proxy.deny(code, status)
    calls = [
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


def test_a_service_that_is_not_there_is_an_outage_that_names_it(
    bucket, patience, proxy, monkeypatch
):
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
def test_a_wrong_environment_is_named(store, patience, monkeypatch, name, value, error, says):
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    with pytest.raises(error, match=says) as caught:
        store.read("demo/HEAD.json")
    assert not getattr(caught.value, "outage", False)
    assert patience.waits == []

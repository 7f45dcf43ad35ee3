"""Answers that say 200 and are not from S3, or not whole: an outage, never a bug."""

import math

import pytest
from botocore.exceptions import ClientError, SSLError

from pipeline.state.stores import Entry, StoreError
from pipeline.state.stores.s3 import errors
from tests.pipeline.state.stores.s3.conftest import PART
from tests.support.contents import content, sha256


@pytest.mark.parametrize(
    "kind", ["page", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("nothing", "half"))]
)
def test_what_is_not_an_answer_of_s3_is_asked_again_and_then_an_outage(
    store, proxy, tmp_path, kind
):
    version = store.compare_and_swap("demo/HEAD.json", b"first", None)
    store.write("demo/large", content(2 * PART))
    listed = [Entry("demo/HEAD.json", 5), Entry("demo/large", 2 * PART)]
    calls = [
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
def test_a_certificate_that_is_not_trusted_does_not_pass_by_itself(reason, passes):
    error = SSLError(endpoint_url="https://127.0.0.1", error=reason)
    assert errors.is_transient(error) == errors.is_outage(error) == passes
    assert ("AWS_CA_BUNDLE" in errors.explain(error, "bucket", "here")) != passes


def test_a_service_that_gives_no_reason_gets_no_words_for_one():
    """Ceph's gateway answers without messages."""
    answer = {"Error": {"Code": "AccessDenied", "Message": None}}
    answer["ResponseMetadata"] = {"HTTPStatusCode": 403}
    reason = errors.explain(ClientError(answer, "PutObject"), "bucket", "here")
    assert reason.startswith("access was denied (AccessDenied); the credentials need")

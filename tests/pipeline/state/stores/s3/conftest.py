"""An S3 store behind a proxy that can fail, with a clock that passes no time."""

import pytest

from pipeline.state.stores.s3.store import S3Store
from tests.support.s3_server import SMALLEST_PART

PART = max(SMALLEST_PART, 100_000)


@pytest.fixture
def bucket(s3):
    return s3.bucket()


class Patience:
    """A store's `sleep` that records each wait, calls `during`, and passes no time."""

    def __init__(self):
        self.waits = []
        self.during = lambda: None

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.during()


@pytest.fixture
def patience():
    return Patience()


@pytest.fixture
def store(proxy, bucket, patience):
    """A store in an empty bucket, whose clients go through `proxy`."""
    return S3Store(bucket, "runs", upload_bytes=PART, download_bytes=PART, sleep=patience.sleep)


def unfinished_uploads(s3, bucket):
    answer = s3.client().list_multipart_uploads(Bucket=bucket)
    return [upload["Key"] for upload in answer.get("Uploads", [])]

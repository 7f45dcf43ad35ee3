"""Where SkyPilot itself keeps a task's secrets, as docs/security.md says."""

import base64
import fnmatch
import re

import pytest

from tests.paths import REPOSITORY
from tests.rental.rented import ENDLESS, JOB, OVERRIDES
from tests.rental.window import window
from tests.support.s3_server import SECRET_KEY

pytestmark = pytest.mark.rental

CHECKOUT = "sky_workdir"  # the copied tests have the secret of their S3 server
DOCUMENT = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")
TABLE = DOCUMENT.partition("## Where SkyPilot keeps secrets")[2].partition("\n\n* ")[0]
NAMED = re.findall(r"(?m)^\| [^|]+ \| `~/([^`]+)` \|", TABLE)


def spellings(secret):
    """Return the secret as it is, and in base64 with any bytes before and after it."""
    shifted = [base64.b64encode(b" " * n + secret.encode())[4:-4] for n in range(3)]
    return [secret.encode(), *shifted]


def keeping(secret, home):
    """Return the files below a home folder that hold the secret, as patterns of the document."""
    found = set()
    for path in home.rglob("*"):
        if not path.is_file() or path.is_symlink() or CHECKOUT in path.parts:
            continue
        data = path.read_bytes()
        if any(spelling in data for spelling in spellings(secret)):
            name = str(path.relative_to(home)).removesuffix("-wal")  # of a database
            found.add(next((p for p in NAMED if fnmatch.fnmatch(name, p)), name))
    return found


def test_skypilot_keeps_secrets_where_the_document_says(rented):
    overrides = [f"store={rented.store}", ENDLESS, *OVERRIDES]
    with window(rented, "launch", JOB, "--on", "sky/runpod-a40.yaml", *overrides) as launch:
        pod = rented.wait_for_training()
        here, there = keeping(SECRET_KEY, rented.loopback.home), keeping(SECRET_KEY, pod.home)
        with window(rented, "stop", rented.run) as stop:
            stop.ends_with(0)
        launch.ends_with(4)
    assert (here, there) == (set(NAMED[:3]), set(NAMED[3:]))

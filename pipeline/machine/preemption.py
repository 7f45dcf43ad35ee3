"""Watch a cloud's metadata service for the notice that it will take this machine.

AWS gives two minutes of notice and Google Cloud thirty seconds. Other clouds have no such service;
there, a process gets SIGTERM or nothing at all.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

# Environment variables that the clouds' own clients read too.
AWS_ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
AWS_DISABLED = "AWS_EC2_METADATA_DISABLED"
GCP_HOST = "GCE_METADATA_HOST"

AWS_SECONDS = 120.0
GCP_SECONDS = 30.0
# The seconds left if the notice's time has passed already: this machine's clock may be wrong.
AT_LEAST = 5.0
TIMEOUT = 2.0
DMI = Path("/sys/class/dmi/id")
ERRORS = (OSError, http.client.HTTPException, ValueError, KeyError, TypeError)


# What the cloud will do, and in how many seconds at the latest.
Notice = tuple[str, float]


def watch_for_notices(
    on_notice: Callable[[str, float], None],
    say: Callable[[str], None] | None = None,
    *,
    every: float = 5.0,
    dmi: Path = DMI,
) -> Callable[[], None] | None:
    """Watch the metadata service of this machine's cloud; return a function that ends the watch.

    Return None if this machine is in no cloud. `on_notice` is called once, in a separate thread,
    with a sentence and the seconds left. The service is queried once in `every` seconds, even
    after errors; `say` gets the first error.
    """
    cloud = cloud_here(dmi)
    if cloud is None:
        return None
    over = threading.Event()

    def watch() -> None:
        said = False
        while not over.is_set():
            try:
                notice = cloud.notice()
            except ERRORS as error:
                notice = None
                if not said and say is not None:
                    said = True
                    say(
                        f"Pion can't ask {cloud.name}'s metadata service whether this machine will "
                        f"be preempted ({error}). Pion may miss a notice, but no state is lost"
                    )
            if notice is not None and not over.is_set():
                on_notice(*notice)
                return
            over.wait(every)

    threading.Thread(target=watch, name="preemption", daemon=True).start()
    return over.set


def cloud_here(dmi: Path = DMI) -> Aws | Gcp | None:
    """Return the cloud of this machine, or None.

    Reads environment variables and the firmware; does not use the network. The cloud's `notice`
    raises one of ERRORS if the metadata service does not answer, or answers something else.
    """
    aws, gcp = os.environ.get(AWS_ENDPOINT), os.environ.get(GCP_HOST)
    if aws or "Amazon EC2" in _firmware(dmi, "sys_vendor", "board_vendor"):
        disabled = os.environ.get(AWS_DISABLED, "").lower() == "true"
        return None if disabled else Aws(aws or "http://169.254.169.254")
    if gcp or "Google Compute Engine" in _firmware(dmi, "product_name"):
        return Gcp(gcp or "metadata.google.internal")
    return None


def _firmware(dmi: Path, *names: str) -> list[str]:
    found = []
    for name in names:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found.append((dmi / name).read_text("utf-8").strip())
    return found


class Aws:
    """The instance metadata service, version 2: every request has a token that expires.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    A rebalance recommendation does not count as a notice: nothing follows most of them.
    """

    name = "AWS"

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._token: str | None = None

    def notice(self) -> Notice | None:
        """Return the notice, or None if there is none."""
        try:
            text = self._action()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        action = json.loads(text)
        at = datetime.fromisoformat(action["time"])
        seconds = min(AWS_SECONDS, max(AT_LEAST, at.timestamp() - time.time()))
        text = f"AWS will take this machine in {seconds:.0f} s ({action['action']})"
        return text, seconds

    def _action(self) -> str:
        path = "latest/meta-data/spot/instance-action"
        if self._token is not None:
            try:
                return self._ask(path, {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code != 401:  # 401: the token has expired
                    raise
        ttl = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        self._token = self._ask("latest/api/token", ttl, method="PUT")
        return self._ask(path, {"X-aws-ec2-metadata-token": self._token})

    def _ask(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        return _open(
            urllib.request.Request(f"{self._endpoint}/{path}", headers=headers, method=method)
        )


class Gcp:
    """The Compute Engine metadata server.

    https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption
    """

    name = "Google Cloud"

    def __init__(self, host: str) -> None:
        self._url = f"http://{host}/computeMetadata/v1/instance/preempted"

    def notice(self) -> Notice | None:
        """Return the notice, or None if there is none."""
        request = urllib.request.Request(self._url, headers={"Metadata-Flavor": "Google"})
        if _open(request).strip() != "TRUE":
            return None
        text = f"{self.name} will take this machine in {GCP_SECONDS:.0f} s (preempted)"
        return text, GCP_SECONDS


def _open(request: urllib.request.Request) -> str:
    """Return the body of the response. Raises OSError or HTTPException."""
    # The service is on this machine's own link, so no proxy is used.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT) as answer:
        body: bytes = answer.read(65536)
    return body.decode()

"""Count what a run asks of a bucket, by the log of the service, and what that costs at S3's prices.

    uv run python -m benchmarks.store_requests --log LOG

PION_REAL_S3 names the service, with the usual AWS variables, and LOG is the file in which it logs
each request. The demo is prepared, trained, killed, continued on an empty disk, and looked at.
Writes benchmarks/results/store_requests.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import boto3

from benchmarks.startup import ROOT
from pipeline.state.heartbeat import HEARTBEAT_SECONDS
from pipeline.state.stores.s3.bucket import PART_BYTES
from pipeline.training.stage_metrics import FLUSH_SECONDS

RESULT = ROOT / "benchmarks" / "results" / "store_requests.json"
JOB = str(ROOT / "jobs" / "demo.yaml")
DAY = 86400
# Dollars for one request: https://aws.amazon.com/s3/pricing/, S3 Standard in us-east-1, read on
# 2026-11-25. A deletion is free.
PRICES = {"write": 0.005e-3, "list": 0.005e-3, "read": 0.0004e-3, "delete": 0.0}
SAVE_SECONDS = 15
SAVES_BEFORE_KILL = 3
# Of a large model, computed: float32 weights and two moments, saved that often.
LARGE_PARAMS, LARGE_SAVE_SECONDS = 1_000_000_000, 207
MULTIPART_CALLS = 2  # it is begun, and completed

LINE = re.compile(r'"(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/[\d.]+" (\d{3})')


@dataclass(frozen=True)
class Request:
    """What was asked: its kind in `PRICES`, the method, and the key below the run."""

    kind: str
    method: str
    key: str


class Log:
    """The requests to one bucket that a service logs from now on."""

    def __init__(self, path: Path, bucket: str) -> None:
        self._path, self._place = path, f"/{bucket}"
        self._at = path.stat().st_size

    def take(self) -> list[Request]:
        """Return what was logged since the last call."""
        time.sleep(2.0)  # the service logs a request after it has answered
        with self._path.open() as file:
            file.seek(self._at)
            lines = file.readlines()
            self._at = file.tell()
        found = (LINE.search(line) for line in lines)
        return [self._read(*match.groups()) for match in found if match and self._mine(match[2])]

    def _mine(self, path: str) -> bool:
        return path == self._place or path.startswith((f"{self._place}/", f"{self._place}?"))

    def _read(self, method: str, path: str, status: str) -> Request:
        key, _, query = path.removeprefix(self._place).lstrip("/").partition("?")
        if method == "GET" and "list-type" in query:
            prefix = re.search(r"prefix=([^&]*)", query)
            return Request("list", "LIST", (prefix[1] if prefix else "").replace("%2F", "/"))
        if "uploads" in query and method == "GET":
            return Request("list", "LIST", "unfinished uploads")
        kind = {"PUT": "write", "POST": "write", "DELETE": "delete"}.get(method, "read")
        return Request(kind, method, key)


def pion(*arguments: str, cache: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def finish(*arguments: str, cache: Path) -> None:
    code = pion(*arguments, cache=cache).wait()
    assert code == 0, f"pion {' '.join(arguments)} ended with {code}"


def train_until_killed(arguments: Sequence[str], cache: Path, log: Log) -> list[Request]:
    """Return the requests of a run that is killed after a few saves."""
    process, asked = pion(*arguments, cache=cache), list[Request]()
    while sum(map(is_end_of_save, asked)) < SAVES_BEFORE_KILL:
        assert process.poll() is None, "the run ended before it was killed"
        asked += log.take()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return asked + log.take()


def is_end_of_save(request: Request) -> bool:
    return request.method == "PUT" and request.key.endswith("/manifest.json")


def counted(requests: Iterable[Request], per: float = 1.0) -> dict[str, float]:
    """Return the requests by kind, and what they cost, for each of `per` events."""
    kinds = Counter(request.kind for request in requests)
    found = {kind: round(kinds[kind] / per, 2) for kind in PRICES if kinds[kind]}
    return {**found, "dollars": dollars(found)}


def dollars(kinds: dict[str, float]) -> float:
    return float(f"{sum(PRICES[kind] * count for kind, count in kinds.items()):.3g}")


def a_day(one: dict[str, float], seconds: float) -> float:
    """Return the dollars a day of something that is done every `seconds`."""
    return round(one["dollars"] * DAY / seconds, 4)


def split_steady(asked: Sequence[Request]) -> dict[str, dict[str, float]]:
    """Return what one save, one beat and one file of rows cost while the stage trains."""

    def below(folder: str) -> Callable[[Request], bool]:
        return lambda request: f"/demo/{folder}" in request.key

    ends = [index for index, request in enumerate(asked) if is_end_of_save(request)]
    # From the first commit after a save to that of the last one: whole saves.
    asked = asked[ends[0] + 1 : ends[-1] + 1]
    saves = len(ends) - 1
    parts = [request for request in asked if below("checkpoints/")(request)]
    head = [request for request in asked if below("HEAD.json")(request)]
    commits = sum(request.method == "PUT" for request in head)
    # A commit reads HEAD and writes it; every other reader of HEAD is a heartbeat.
    beats = [request for request in head if request.method == "GET"][commits:]
    beats += [r for r in asked if below("owner/")(r) or below("requests/")(r)]
    written = sum(below("owner/")(r) and r.method == "PUT" for r in beats)
    rows = [request for request in asked if below("metrics/")(request)]
    speed = [request for request in asked if "/_data/speeds/" in request.key]
    known = {*parts, *head, *beats, *rows, *speed}
    rest = Counter(f"{r.method} {r.key}" for r in asked if r not in known)
    assert not rest, f"requests of no kind: {rest}"
    written_heads = [request for request in head if request.method == "PUT"]
    read_heads = [request for request in head if request.method == "GET"][:commits]
    save = counted([*parts, *written_heads, *read_heads], saves)
    return {
        "save": save,
        "beat": counted(beats, written),
        "file of rows": counted([*rows, *speed], len(rows)),
    }


# What reads a run once.
LOOKS = {
    "status": "import sys; from pipeline.cli import main; main(['status', sys.argv[1]])",
    "page": """import sys
from pipeline.live.watched_run import WatchedRun
from pipeline.state.find_run import read_run
WatchedRun(read_run(sys.argv[1])[0]).look()""",
}


def large_save() -> dict[str, float]:
    """Return what a save of a large model takes, by the rule that the small one shows: a part for
    each 16 MiB, two calls for each of the two files, five small files, HEAD, and two lists: of what
    was saved, and of the old checkpoint, which is deleted."""
    sizes = (4 * LARGE_PARAMS, 8 * LARGE_PARAMS)
    parts = sum(math.ceil(size / PART_BYTES) + MULTIPART_CALLS for size in sizes)
    kinds: dict[str, float] = {"write": parts + 5 + 1, "list": 2, "read": 1}
    return {**kinds, "dollars": dollars(kinds)}


def measure(log_path: Path, bucket: str, folder: Path) -> dict[str, dict[str, float]]:
    store = f"store=s3://{bucket}/runs"
    log = Log(log_path, bucket)
    run = ["run", JOB, store, f"checkpoint.every_seconds={SAVE_SECONDS}", "--until"]
    finish(*run, "prepare", cache=folder / "first")
    found = {"prepare": counted(log.take())}
    train_until_killed([*run, "pretrain"], folder / "first", log)
    finish(*run, "pretrain", cache=folder / "second")
    asked = log.take()
    first = next(i for i, request in enumerate(asked) if "/metrics/" in request.key)
    found["start on an empty disk"] = counted(asked[:first])
    found |= split_steady(asked)
    for name, look in LOOKS.items():
        command = [sys.executable, "-c", look, f"s3://{bucket}/runs/demo"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found[name] = counted(log.take())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    os.environ["AWS_ENDPOINT_URL"] = os.environ["PION_REAL_S3"]
    bucket = f"requests-{int(time.time())}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.log, bucket, Path(folder))
    large = large_save()
    found |= {f"save of {LARGE_PARAMS:,} parameters, computed": large}
    day = {
        "beats": a_day(found["beat"], HEARTBEAT_SECONDS),
        "rows": a_day(found["file of rows"], FLUSH_SECONDS),
        f"saves of {LARGE_PARAMS:,} parameters": a_day(large, LARGE_SAVE_SECONDS),
    }
    result = {"prices": PRICES, "requests": found, "dollars_a_day": day}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(RESULT.read_text("utf-8"))


if __name__ == "__main__":
    main()

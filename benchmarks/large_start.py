"""Measure the seconds to the first step on an empty disk, with 20 GB of data and with 5 MB.

    uv run python -m benchmarks.large_start [--rounds 3] [--shards 488]

S3 is moto's server on loopback. One machine prepares a shard of 41 MB, and the manifest then lists
it so many times: a proxy in front of moto lists all of them, and answers with the first one. The
other run has a small shard. By turns, `pion run` resumes each of them on an empty disk until its
first step, and is killed. Writes benchmarks/results/large_start.json.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.first_batch import SEQ_LEN, write_letters_job
from benchmarks.restore import PHASE
from benchmarks.startup import ROOT, seconds_until
from pion.data.shards import Manifest
from tests.support.s3_server import S3Server, s3_server

RESULT = ROOT / "benchmarks" / "results" / "large_start.json"
SHARD_ROWS = 20_000
FIRST = "shard_00000.npy"
SHARD = re.compile(r"shard_\d{5}\.npy")
# The entries of shards in a list of objects: that of the first one, and the others.
ENTRY = r"<Contents>\s*<Key>large/[^<]*/train/shard_{}\.npy</Key>.*?</Contents>"
FIRST_ENTRY = re.compile(ENTRY.format("00000").encode(), re.DOTALL)
LATER_ENTRY = re.compile(ENTRY.format("0000[1-9]").encode(), re.DOTALL)
# 1.16 letters are a token. Part of the text is held out.
LETTERS = {"large": int(1.25 * SEQ_LEN * SHARD_ROWS), "small": 3_000_000}
STEPS = 1000
# The run is killed at its first step, so it never saves.
TRAINED = {
    "pretrain": {"steps": STEPS, "global_batch": 1, "warmup_steps": 1},
    "checkpoint": {"every_steps": STEPS},
}
PREPARE = ("--until", "prepare")


@contextmanager
def one_shard_for_all(upstream: str, shards: int) -> Iterator[S3Server]:
    """Pass requests on to `upstream`. Whoever reads any shard gets the first one, and lists of
    objects have so many shards in its place."""
    host, port = urlsplit(upstream).hostname or "127.0.0.1", urlsplit(upstream).port

    def every_shard(entry: re.Match[bytes]) -> bytes:
        first = FIRST.encode()
        return b"".join(entry[0].replace(first, name.encode()) for name in names_of(shards))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            reads = self.command in ("GET", "HEAD")
            path = SHARD.sub(FIRST, self.path) if reads else self.path
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            there = http.client.HTTPConnection(host, port)
            there.request(self.command, path, body, dict(self.headers))
            found = there.getresponse()
            data = found.read()
            if "list-type=2" in path:
                data = FIRST_ENTRY.sub(every_shard, LATER_ENTRY.sub(b"", data))
            self.send_response(found.status)
            for name, value in found.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            size = found.headers["Content-Length"] if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            self.wfile.write(data)
            there.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Clients that are killed close their connections."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield S3Server(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def start(job: Path, store: str, environment: dict[str, str], *words: str) -> Any:
    command = [sys.executable, "-m", "pipeline.cli", "run", str(job), f"store={store}", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def names_of(shards: int) -> list[str]:
    return [f"shard_{number:05d}.npy" for number in range(shards)]


def multiply(client: Any, bucket: str, shards: int) -> int:
    """Let the training rows of `large` be their first shard, `shards` times; return the bytes."""
    found = client.list_objects_v2(Bucket=bucket, Prefix="large/_data/")["Contents"]
    keys = [each["Key"] for each in found]

    def read(end: str) -> tuple[str, bytes]:
        (key,) = (key for key in keys if key.endswith(end))
        return key, client.get_object(Bucket=bucket, Key=key)["Body"].read()

    (key, manifest), (list_key, listed) = read("train/manifest.json"), read("/files.json")
    files = json.loads(listed)
    with tempfile.NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(manifest)
        of_one = Manifest.read(path)
        first = of_one.shards[0]
        assert first.rows == SHARD_ROWS, first
        many = tuple(replace(first, name=name) for name in names_of(shards))
        replace(of_one, shards=many).write(path)
        manifest = path.read_bytes()
    client.put_object(Bucket=bucket, Key=key, Body=manifest)
    name = key.removeprefix(list_key.removesuffix("files.json"))
    digest = hashlib.sha256(manifest).hexdigest()
    files["files"][name] = {"size": len(manifest), "sha256": digest}
    shard = files["files"][name.replace("manifest.json", FIRST)]
    files["files"] |= {name.replace("manifest.json", each): shard for each in names_of(shards)}
    client.put_object(Bucket=bucket, Key=list_key, Body=json.dumps(files).encode())
    return first.bytes * shards


def first_step(job: Path, store: str, environment: dict[str, str]) -> dict[str, float]:
    """Return the seconds by phase until the first step on an empty disk, and kill the run there."""
    shutil.rmtree(environment["XDG_CACHE_HOME"], ignore_errors=True)
    process = start(job, store, environment)
    log: list[str] = []
    seconds_until(process, "first step after", log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)
    text = log[-1].split("  ", 1)[1]
    return {name.strip(" ,("): float(seconds) for name, seconds in PHASE.findall(text)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shards", type=int, default=488)
    given = parser.parse_args()
    phases: dict[str, list[dict[str, float]]] = {"small": [], "large": []}
    with (
        s3_server() as moto,
        one_shard_for_all(moto.url, given.shards) as s3,
        tempfile.TemporaryDirectory() as folder,
    ):
        bucket = moto.bucket()
        cache = Path(folder) / "cache"
        here = {"XDG_CACHE_HOME": str(cache)}
        environment = os.environ | s3.environment() | here
        jobs = {
            size: write_letters_job(
                Path(folder), size, LETTERS[size], seed=1, shard_rows=SHARD_ROWS, **TRAINED
            )
            for size in phases
        }
        stores = {size: f"s3://{bucket}/{size}" for size in phases}
        for size, job in jobs.items():
            process = start(job, stores[size], os.environ | moto.environment() | here, *PREPARE)
            print(process.communicate()[0][-400:], flush=True)
        size_of_data = multiply(moto.client(), bucket, given.shards)
        for _ in range(given.rounds):
            for size, job in jobs.items():
                phases[size].append(first_step(job, stores[size], environment))
                print(size, phases[size][-1], flush=True)
    seconds = {
        size: statistics.median(each["first step"] for each in found)
        for size, found in phases.items()
    }
    result = {
        "bytes": size_of_data,
        "shards": given.shards,
        "first_step_seconds": seconds,
        "ratio": round(seconds["large"] / seconds["small"], 3),
        "phases": phases,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()

"""A bucket with ten million keys that takes no memory: the keys of equal runs, made when asked for.

It answers lists, as S3 does, a thousand names to a page, and GETs of each run's HEAD.json. So a
command that lists what lies below the runs makes ten thousand requests here.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from pipeline.state.head import Head
from tests.support.s3_server import S3Server
from tests.support.states import an_entry, someone

BUCKET = "many-keys"
PAGE = 1000
HEAD = "HEAD.json"


@dataclass(frozen=True)
class Keys:
    """The sorted keys of `runs` runs with `objects` objects each, below `runs/`."""

    runs: int
    objects: int

    def __len__(self) -> int:
        return self.runs * self.objects

    def __getitem__(self, number: int) -> str:
        run, of_run = divmod(number, self.objects)
        name = HEAD if of_run == 0 else f"metrics/pretrain/1/{of_run - 1:06}.jsonl"
        return f"runs/run-{run:06}/{name}"

    def page(self, prefix: str, delimiter: str, start: int) -> tuple[list[str], list[str], int]:
        """Return the keys and the folders of a page from key number `start`, and the number of the
        next page's first key; -1: there is none."""
        keys: list[str] = []
        folders: list[str] = []
        at = max(start, bisect_left(self, prefix))
        while at < len(self) and self[at].startswith(prefix):
            if len(keys) + len(folders) == PAGE:
                return keys, folders, at
            name, found, _ = self[at].removeprefix(prefix).partition(delimiter or "\0")
            if found:
                folders.append(prefix + name + delimiter)
                at = bisect_left(self, folders[-1] + "\x7f", lo=at)
            else:
                keys.append(self[at])
                at += 1
        return keys, folders, -1


def _handler(keys: Keys) -> type[BaseHTTPRequestHandler]:
    head = Head().claimed(someone(), 1.0).with_checkpoint(an_entry(10, at=1.0)).to_json()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(asked.query).items()}
            key = asked.path.removeprefix(f"/{BUCKET}").lstrip("/")
            if "list-type" in query:
                self._answer(200, _list(keys, query))
            elif key.endswith(f"/{HEAD}") and keys[bisect_left(keys, key)] == key:
                whole = {"Content-Range": f"bytes 0-{len(head) - 1}/{len(head)}", "ETag": '"1"'}
                self._answer(206, head, whole)
            else:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

        def _answer(self, status: int, body: bytes, headers: Any = ()) -> None:
            self.send_response(status)
            for name, value in dict(headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def _list(keys: Keys, query: dict[str, str]) -> bytes:
    start = int(query.get("continuation-token", 0))
    found, folders, more = keys.page(query.get("prefix", ""), query.get("delimiter", ""), start)
    parts = [f"<Contents><Key>{escape(key)}</Key><Size>1</Size></Contents>" for key in found]
    parts += [f"<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>" for f in folders]
    parts.append(f"<IsTruncated>{'true' if more >= 0 else 'false'}</IsTruncated>")
    if more >= 0:
        parts.append(f"<NextContinuationToken>{more}</NextContinuationToken>")
    return f"<ListBucketResult>{''.join(parts)}</ListBucketResult>".encode()


def _serve(runs: int, objects: int, pipe: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(Keys(runs, objects)))
    pipe.send(f"http://127.0.0.1:{server.server_address[1]}")
    server.serve_forever()


@contextlib.contextmanager
def many_keys(runs: int, objects: int) -> Iterator[S3Server]:
    """Serve the bucket from a separate process."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(runs, objects, theirs), daemon=True)
    process.start()
    try:
        yield S3Server(ours.recv())
    finally:
        process.terminate()
        process.join()

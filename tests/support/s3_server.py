"""An S3 service on loopback: moto's server, and a proxy in front of it that injects failures.

    with s3_server() as s3, FaultProxy(s3.url) as proxy:
        bucket = s3.bucket()
        proxy.use(monkeypatch)                                  # this process's clients, or
        subprocess.run(…, env=os.environ | proxy.environment())  # another's, talk to the proxy
        proxy.fail("PUT .*HEAD.json", kind="drop_after")        # a lost acknowledgement
        proxy.fail("GET .*model", kind="reset", times=2)        # the connection breaks mid-body
        proxy.fail("PUT", status=503, code="SlowDown", headers={"Retry-After": "2"})

Moto accepts any credentials and any checksum. The proxy refuses content that does not match its
checksum, as S3 does, and has `deny` for credentials.

With PION_REAL_S3, the endpoint of a real service, that service takes moto's place, with the
credentials of the AWS variables. The proxy then signs what it passes on with these credentials.
"""

import base64
import http.client
import math
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import threading
import uuid
import zlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.support.http_body import read_body
from tests.support.waiting import join

ACCESS_KEY = "AKIATESTTESTTESTTEST"
SECRET_KEY = "secret-that-no-output-may-contain"
REAL_SERVICE = os.environ.get("PION_REAL_S3", "")
# A real service takes no smaller parts.
SMALLEST_PART = 5 << 20 if REAL_SERVICE else 1

# Ends with its standard input, so that it never outlives the tests. It serves one request at a
# time: moto's compare-and-swap is not atomic, so two threads could compare before either swaps.
_SERVE = """
import io, logging, sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
logging.getLogger("werkzeug").disabled = True
moto, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()
def one_at_a_time(environ, start_response):
    size = int(environ.get("CONTENT_LENGTH") or 0)
    environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(size))
    with lock:
        return moto(environ, start_response)
server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""

# What a proxy on the way may answer in S3's place.
PAGE = b"<!DOCTYPE html><html><body><p>Sign in to this network<br></body></html>"


@dataclass(frozen=True)
class _Keys:
    """What an S3 client signs its requests with."""

    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = "us-east-1"


def _real_keys():
    """Return the keys of the real service. Read before tests change the environment."""
    return _Keys(
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_REGION", "us-east-1"),
    )


_KEYS = _real_keys() if REAL_SERVICE else _Keys()


class _Endpoint:
    """An address that S3 clients can be made to use."""

    url: str
    keys = _Keys()

    def environment(self):
        """Return variables that make another process's clients use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": self.keys.access_key,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret_key,
            "AWS_REGION": self.keys.region,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def use(self, monkeypatch):
        """Make this process's new clients use it until the test ends."""
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        for name, value in self.environment().items():
            monkeypatch.setenv(name, value)


@dataclass
class S3Server(_Endpoint):
    url: str
    keys = _KEYS
    made: list[str] = field(default_factory=list)
    """The buckets that tests made."""

    def client(self):
        """Return a separate client, to look at what a store wrote."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=self.keys.access_key,
            aws_secret_access_key=self.keys.secret_key,
            region_name=self.keys.region,
        )

    def bucket(self, name=None):
        """Make an empty bucket and return its name."""
        name = name or f"bucket-{uuid.uuid4().hex[:12]}"
        answer = _send(self.url, "PUT", f"/{name}", {}, _location(self.keys.region))
        assert answer.status == 200, (name, answer.body)
        self.made.append(name)
        return name

    def delete_buckets(self):
        """Delete the buckets that tests made, with all that is in them."""
        client = self.client()
        for name in self.made:
            uploads = client.list_multipart_uploads(Bucket=name).get("Uploads", [])
            for upload in uploads:
                client.abort_multipart_upload(
                    Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"]
                )
            while found := client.list_objects_v2(Bucket=name).get("Contents"):
                for item in found:
                    client.delete_object(Bucket=name, Key=item["Key"])
            client.delete_bucket(Bucket=name)


def _location(region):
    """Return the body that makes a bucket in `region`; S3 wants none for its first region."""
    inside = f"<LocationConstraint>{region}</LocationConstraint>"
    whole = f"<CreateBucketConfiguration>{inside}</CreateBucketConfiguration>"
    return b"" if region == "us-east-1" else whole.encode()


@contextmanager
def s3_server():
    """Serve S3 in a separate process, on a free port; or use the real service, if there is one."""
    if REAL_SERVICE:
        server = S3Server(REAL_SERVICE)
        try:
            yield server
        finally:
            server.delete_buckets()
        return
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Without a size of buffers, moto keeps each object in an open file if parts may be small.
        env=os.environ
        | {"S3_UPLOAD_PART_MIN_SIZE": "1", "MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": str(16 << 20)},
    )
    try:
        yield S3Server(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.stdin.close()
        process.wait(60)
        process.stdout.close()


@dataclass
class Fault:
    """What happens to requests whose "METHOD /path?query [bytes=first-last]" matches.

    With `access_key`, only requests that it signs. The first `after` pass, and the next
    `times` suffer. Kinds:
    `status`: answered with an error, not forwarded · `drop_before`: the connection closes, nothing
    was done · `drop_after`: it was done, and the connection closes without an answer ·
    `truncate`: the answer's body ends halfway · `reset`: the same by a reset of the connection ·
    `flip`: one bit of what is sent, or else of what is answered, differs ·
    `delay`: all goes well, `seconds` later ·
    `page`, `nothing`: not forwarded, and answered 200 with a page of HTML, or without anything ·
    `half`: half of the answer's body, as if that were all, without S3's own headers.
    """

    match: str
    kind: str
    times: float = 1
    after: int = 0
    status: int = 503
    code: str = "ServiceUnavailable"
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    access_key: str = ""


@dataclass
class _Storm:
    """Every `every`-th request suffers the next of several temporary faults."""

    every: int
    seen: int = 0
    suffered: int = 0

    def next(self):
        self.seen += 1
        if self.seen % self.every:
            return None
        self.suffered += 1
        kinds = [
            ("status", 503),
            ("drop_after", 0),
            ("truncate", 0),
            ("status", 429),
            ("drop_before", 0),
            ("reset", 0),
            ("status", 500),
        ]
        kind, status = kinds[self.suffered % len(kinds)]
        return Fault(".", kind, status=status, code="SlowDown")


class FaultProxy(_Endpoint):
    """Passes requests on to `upstream` and responses back, unless told to `fail`."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.requests = []
        """Every request that came, "METHOD /path?query [bytes=first-last]"."""
        self.ignored_headers = set()
        """Dropped from every request: {"if-match", "if-none-match"}, as some servers do."""
        self.etag_form = lambda etag: True
        """Whether a write's If-Match may be compared: Ceph's gateway finds no quoted ETag equal."""
        self.brings_back = False
        """Whether If-Match is dropped where nothing is, as old MinIOs do."""
        self.refuses = lambda *_: None
        """What a request gets instead of being passed on, by its method and headers."""
        self.page_size = 1000
        """How many objects a page of a list has."""
        self.date = lambda: formatdate(usegmt=True)
        """The Date header of every response."""
        self._faults = []
        self._storm = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        join(self._thread)

    def fail(
        self,
        match,
        *,
        kind="status",
        times=1,
        after=0,
        status=503,
        code="ServiceUnavailable",
        headers=None,
        seconds=0.0,
        access_key="",
    ):
        """Make the next matching requests fail; see `Fault`."""
        fault = Fault(match, kind, times, after, status, code, headers or {}, seconds, access_key)
        with self._lock:
            self._faults.append(fault)
        return fault

    def deny(self, code="AccessDenied", status=403, *, match=".", access_key=""):
        """Refuse every matching request until `clear`. Expired: `deny("ExpiredToken", 400)`."""
        return self.fail(match, times=math.inf, status=status, code=code, access_key=access_key)

    def storm(self, every):
        """Let every `every`-th request fail in one of several ways, until `clear`."""
        self._storm = _Storm(every)

    def clear(self):
        """Let no more requests fail."""
        with self._lock:
            self._faults.clear()
            self._storm = None
            self.ignored_headers = set()
            self.etag_form = lambda etag: True
            self.brings_back = False
            self.refuses = lambda *_: None
            self.page_size = 1000

    def refuse_checksums(self, status, code, message, method="."):
        """Refuse requests of a method that name a checksum, until `clear`. `{}` in the message is
        the header."""

        def refuses(sent, headers):
            named = [name for name in headers if "checksum" in name.lower()]
            refused = named and re.search(method, sent)
            return _error(status, code, {}, message.format(*named)) if refused else None

        self.refuses = refuses

    def count(self, match):
        """Return how many requests so far match."""
        return sum(bool(re.search(match, request)) for request in self.requests)

    def take_fault(self, request, authorization):
        with self._lock:
            self.requests.append(request)
            for fault in self._faults:
                signed = fault.access_key in authorization
                if fault.times > 0 and signed and re.search(fault.match, request):
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
            return self._storm.next() if self._storm else None

    def wait(self, seconds):
        """Wait, but not longer than the proxy runs."""
        self._closing.wait(seconds)


@dataclass
class _Answer:
    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""


class _Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: FaultProxy

    def log_message(self, *args):
        pass

    def date_time_string(self, timestamp=None):
        return self.proxy.date()

    def _handle(self):
        request = f"{self.command} {self.path} {self.headers.get('Range') or ''}".rstrip()
        fault = self.proxy.take_fault(request, self.headers.get("Authorization") or "")
        kind = fault.kind if fault else None
        if kind == "drop_before":
            self.close_connection = True  # with the body still on its way
            return
        body = read_body(self)
        if fault and kind == "delay":
            self.proxy.wait(fault.seconds)
        if kind == "flip" and body:
            body, kind = _flipped(body), None
        try:
            if fault and kind == "status":
                self._send(_error(fault.status, fault.code, fault.headers), None)
            elif kind in ("page", "nothing"):
                page = PAGE if kind == "page" else b""
                self._send(_Answer(200, [("Content-Type", "text/html")], page), None)
            elif (refused := self.proxy.refuses(self.command, dict(self.headers))) is not None:
                self._send(refused, None)
            elif not self._checksum_fits(body):
                self._send(_error(400, "BadDigest", {}), None)
            elif not self._etag_fits():
                self._send(_error(412, "PreconditionFailed", {}), None)
            else:
                answer = self._forward(body)
                if kind == "drop_after":
                    self.close_connection = True
                    return
                if kind == "half":
                    answer = _Answer(200, [], answer.body[: len(answer.body) // 2])
                self._send(answer, kind)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _checksum_fits(self, body):
        wanted = self.headers.get("x-amz-checksum-crc32")
        found = base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()
        return wanted is None or self.command == "POST" or wanted == found

    def _etag_fits(self):
        etag = self.headers.get("If-Match")
        return etag is None or self.command != "PUT" or self.proxy.etag_form(etag)

    def _forward(self, body):
        dropped = {"connection", "expect", "host", "transfer-encoding", "content-length"}
        dropped |= self.proxy.ignored_headers
        if self.proxy.brings_back and self.command == "PUT":
            signed = {k: v for k, v in self.headers.items() if not k.lower().startswith("if-")}
            there = _send(self.proxy.upstream, "HEAD", self.path, signed, b"").status == 200
            dropped |= set() if there else {"if-match"}
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        page = f"&max-keys={self.proxy.page_size}" if "list-type=2" in self.path else ""
        return _send(self.proxy.upstream, self.command, self.path + page, headers, body)

    def _send(self, answer, kind):
        hop_by_hop = ("connection", "transfer-encoding", "server", "date")
        self.send_response(answer.status)
        names = set()
        for name, value in answer.headers:
            if name.lower() not in hop_by_hop:
                names.add(name.lower())
                self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command == "HEAD" or answer.status == 304:
            return
        body = _flipped(answer.body) if kind == "flip" and answer.body else answer.body
        if kind not in ("truncate", "reset"):
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if kind == "reset":
            # With a linger time of 0, closing sends a reset instead of the end of the stream.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request):
        """Close at once: an orderly shutdown would come before a reset."""
        self.close_request(request)

    def handle_error(self, request, client_address):
        """Ignore clients that hang up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _send(endpoint, method, path, headers, body):
    """Send one request to `endpoint` and return the answer."""
    url = urlsplit(endpoint)
    sent = {**headers, "Content-Length": str(len(body))}
    if REAL_SERVICE:
        sent = _signed(method, endpoint.rstrip("/") + path, sent, body)
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
        upstream = http.client.HTTPSConnection(url.netloc, context=context)
    else:
        upstream = http.client.HTTPConnection(url.netloc)
    try:
        upstream.request(method, path, body, sent)
        answer = upstream.getresponse()
        return _Answer(answer.status, answer.getheaders(), answer.read())
    finally:
        upstream.close()


def _signed(method, url, headers, body):
    """Return the headers with a signature of the real service's keys instead of the client's."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    old = ("authorization", "x-amz-date", "x-amz-content-sha256", "x-amz-security-token")
    kept = {name: value for name, value in headers.items() if name.lower() not in old}
    request = AWSRequest(method, url, kept, body)
    keys = Credentials(_KEYS.access_key, _KEYS.secret_key)
    S3SigV4Auth(keys, "s3", _KEYS.region).add_auth(request)
    return dict(request.headers)


def _error(status, code, headers, message="Injected by the test."):
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    )
    return _Answer(status, [*headers.items(), ("Content-Type", "application/xml")], body.encode())


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]

"""The metadata services of AWS (version 2) and Google Cloud on loopback.

with metadata_server() as cloud:
    subprocess.run(…, env=os.environ | cloud.aws_environment())
    cloud.interrupt("terminate", seconds=118)      # AWS
    cloud.preempted = True                         # Google Cloud
"""

import json
import secrets
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

AWS_TOKEN = "X-aws-ec2-metadata-token"


@dataclass
class Metadata:
    """What the services answer, and (method, path, status) of every request so far."""

    port: int = 0
    action: str | None = None  # the body of spot/instance-action
    rebalance: bool = False
    preempted: bool = False
    failing: bool = False  # answer everything with 500
    refusing_tokens: bool = False
    tokens: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, int]] = field(default_factory=list)

    def interrupt(self, action, seconds):
        """Announce, as AWS does, that the machine will be taken in `seconds`."""
        at = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.action = json.dumps({"action": action, "time": at})

    def aws_environment(self):
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{self.port}/"}

    def gcp_environment(self):
        return {"GCE_METADATA_HOST": f"127.0.0.1:{self.port}"}

    def answer(self, method, path, headers):
        if self.failing:
            return 500, "out of order"
        if path.startswith("/computeMetadata/"):
            return self._google(path, headers)
        if (method, path) == ("PUT", "/latest/api/token"):
            if not 1 <= int(headers.get(f"{AWS_TOKEN}-ttl-seconds".lower(), 0)) <= 21600:
                return 400, "a time to live is missing"
            token = secrets.token_urlsafe(40)
            self.tokens.add(token)
            return 200, token
        if self.refusing_tokens or headers.get(AWS_TOKEN.lower()) not in self.tokens:
            return 401, "Unauthorized"
        if path == "/latest/meta-data/spot/instance-action" and self.action is not None:
            return 200, self.action
        if path == "/latest/meta-data/events/recommendations/rebalance" and self.rebalance:
            return 200, '{"noticeTime": "2026-01-01T00:00:00Z"}'
        return 404, "Not Found"

    def _google(self, path, headers):
        if headers.get("metadata-flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header."
        if path == "/computeMetadata/v1/instance/preempted":
            return 200, "TRUE" if self.preempted else "FALSE"
        return 404, "Not Found"


@contextmanager
def metadata_server():
    """Serve until the block ends."""
    metadata = Metadata()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, text = metadata.answer(self.command, self.path, headers)
            metadata.asked.append((self.command, self.path, status))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        do_PUT = do_GET

        def log_message(self, *_):
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    metadata.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()

"""RunPod's GraphQL API on loopback: lists the pods of one account, and ends them.

with serve_runpod(RunPodApi()) as url: …
"""

import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.support.http_body import read_body

API_KEY = "rpa_LOOPBACK"
CONFIG = f'[default]\napi_key = "{API_KEY}"\n'


class RunPodApi:
    """An account whose pods are only entries of a list; see `rent`.

    tests/rental/loopback_runpod.py has an account whose pods run on this machine.
    """

    def __init__(self):
        self.listed = []
        # The time and the GraphQL of every request that does not list pods.
        self.requests = []
        # The pods that it does not end.
        self.locked = set()
        # If set, the API answers every request with this.
        self.status = 200
        self.error = None
        self.body = None

    def rent(self, pod, name, status="RUNNING", change=""):
        """Add a pod; `change` is its last change of status, in RunPod's words."""
        self.listed.append(
            {
                "id": pod,
                "name": name,
                "desiredStatus": status,
                "costPerHr": 0.2,
                "gpuCount": 1,
                "lastStatusChange": change,
                "machine": {"gpuDisplayName": "A40"},
            }
        )

    @property
    def ids(self):
        """The ids of the listed pods."""
        return [pod["id"] for pod in self.list_pods()]

    def list_pods(self):
        """Return every pod as the API describes it."""
        return self.listed

    def terminate(self, pod_id):
        """End a pod. Raises ValueError with what RunPod would say."""
        if pod_id in self.locked:
            raise ValueError("pod is locked")
        if pod_id not in self.ids:
            raise ValueError("pod not found")
        self.listed = [pod for pod in self.listed if pod["id"] != pod_id]

    def answer(self, query):
        """Return the `data` of the answer. Raises ValueError with what RunPod would say."""
        query = " ".join(query.split())
        if self.error is not None:
            raise ValueError(self.error)
        if "costPerHr" in query and "pod(input" in query:  # a pod asks what it costs itself
            asked = argument(query, "podId")
            return {"pod": next((pod for pod in self.list_pods() if pod["id"] == asked), None)}
        if "currentSpendPerHr" in query:
            running = [pod for pod in self.list_pods() if pod["desiredStatus"] == "RUNNING"]
            spend = sum(pod["costPerHr"] for pod in running)
            return {"myself": {"currentSpendPerHr": spend, "pods": self.list_pods()}}
        if "myPods" in query:
            return {"myself": {"pods": self.list_pods()}}
        self.requests.append((time.time(), query))
        if "podTerminate" in query:
            self.terminate(argument(query, "podId"))
            return {"podTerminate": None}
        return self.answer_other(query)

    def answer_other(self, query):
        """Answer requests that don't list or end pods."""
        raise ValueError(f"Cannot query this: {query}")


def argument(query, name):
    """Return the value of argument `name` of a GraphQL query; empty if it has none."""
    found = re.search(rf'\b{name}: (?:"((?:[^"\\]|\\.)*)"|([^\s,}}]+))', query)
    if found is None:
        return ""
    return found[1] if found[1] is not None else found[2]


@contextmanager
def serve_runpod(api):
    """Serve until the block ends; yields the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(read_body(self))
            if self.headers.get("Authorization") != f"Bearer {API_KEY}":
                return self._send(401, {"errors": [{"message": "Unauthorized"}]})
            try:
                self._send(api.status, {"data": api.answer(body["query"])})
            except ValueError as error:
                self._send(api.status, {"errors": [{"message": str(error)}], "data": None})

        def do_HEAD(self):
            """Answer SkyPilot's check for a network."""
            self._send(200, {})

        def _send(self, status, answer):
            body = (json.dumps(answer) if api.body is None else api.body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            """Nothing on standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()

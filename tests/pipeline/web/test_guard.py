"""Only this server's names, pages and key holders are answered."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from pion.errors import BadInput
from pipeline.models.find import find_model
from pipeline.web.address import API_KEY, Address
from tests.support.served import serving
from tests.support.waiting import PATIENCE_SECONDS

KEY = "0123456789abcdef"
BODY = {"model": "base", "prompt": "The", "max_tokens": 1}


def post(served, headers=None, **body):
    return served.ask("POST", "/v1/completions", json={**BODY, **body}, headers=headers or {})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "attacker.example"}, 421),
        ({"Host": "127.0.0.1.attacker.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "evil@localhost"}, 421),
        ({"Host": "localhost/evil"}, 421),
        ({"Host": "localhost#evil"}, 421),
        ({"Host": "localhost?evil"}, 421),
        ({"Host": "LocalHost."}, 200),
        ({"Host": "[0:0:0:0:0:0:0:1]:8000"}, 200),
        ({"Origin": "http://attacker.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_only_this_server_s_names_and_pages_are_answered(headers, status, served):
    headers = {"Content-Type": "application/json", **headers}
    answer = served.ask("POST", "/v1/completions", content=json.dumps(BODY), headers=headers)
    assert answer.status_code == status
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


HOSTILE = {
    "after an address": b"GET /health HTTP/1.1\r\nHost: [::1].evil\r\n",
    "before an address": b"GET /health HTTP/1.1\r\nHost: evil[::1]\r\n",
    "an address inside": b"GET /health HTTP/1.1\r\nHost: [::1]evil:80\r\n",
    "an unclosed address": b"GET /health HTTP/1.1\r\nHost: [::1\r\n",
    "another address": b"GET /health HTTP/1.1\r\nHost: [::2]\r\n",
    "no address": b"GET /health HTTP/1.1\r\nHost: [localhost]\r\n",
    "a scope": b"GET /health HTTP/1.1\r\nHost: [::1%lo]\r\n",
    "a bare address": b"GET /health HTTP/1.1\r\nHost: ::1\r\n",
    "two ports": b"GET /health HTTP/1.1\r\nHost: localhost:80:80\r\n",
    "a port of letters": b"GET /health HTTP/1.1\r\nHost: localhost:evil\r\n",
    "two dots": b"GET /health HTTP/1.1\r\nHost: localhost..\r\n",
    "a list": b"GET /health HTTP/1.1\r\nHost: localhost,evil\r\n",
    "two words": b"GET /health HTTP/1.1\r\nHost: localhost evil\r\n",
    "no ASCII": "GET /health HTTP/1.1\r\nHost: ſlocalhost\r\n".encode(),
    "a URL of another": b"GET http://evil/health HTTP/1.1\r\nHost: localhost\r\n",
    "a URL with a user": b"GET http://evil@localhost/health HTTP/1.1\r\nHost: localhost\r\n",
    "a URL with a port": b"GET http://localhost:1/health HTTP/1.1\r\nHost: localhost\r\n",
    "a URL and no host": b"GET http://localhost/health HTTP/1.1\r\nHost: evil\r\n",
    "another's tunnel": b"CONNECT evil:80 HTTP/1.1\r\nHost: localhost\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n",
    "no host": b"GET /health HTTP/1.0\r\n",
    "two origins": b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    b"Origin: http://localhost\r\nOrigin: http://evil\r\n",
    "an origin's path": b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost/x\r\n",
    "an origin's scheme": b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: evil://localhost\r\n",
    "an origin's user": b"GET /health HTTP/1.1\r\nHost: localhost\r\nOrigin: http://e@localhost\r\n",
    "two types": b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
    b"Content-Type: application/json\r\nContent-Type: text/plain\r\n",
}


def raw(url, request):
    """Return the first line of the answer to a request that no client would send."""
    at = urlsplit(url)
    with socket.create_connection((at.hostname, at.port), PATIENCE_SECONDS) as client:
        client.sendall(request + b"Connection: close\r\n\r\n")
        return client.makefile("rb").readline()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_request_that_could_mean_another_server_is_refused(name, served):
    assert raw(served.url, HOSTILE[name]).split()[1] in (b"400", b"403", b"421")


def test_a_url_of_this_server_is_answered(served):
    """As clients send it that take the server for a proxy."""
    asked = b"GET http://localhost:80/health HTTP/1.1\r\nHost: localhost:80\r\n"
    assert raw(served.url, asked).split()[1] == b"200"


def test_its_own_page_is_answered(served):
    assert post(served, {"Origin": served.url}).status_code == 200


def test_a_foreign_page_can_t_ask_what_is_allowed(served):
    """A browser asks first (OPTIONS) before a foreign page may send JSON."""
    asked = {"Origin": "http://attacker.example", "Access-Control-Request-Method": "POST"}
    assert served.ask("OPTIONS", "/v1/completions", headers=asked).status_code == 403


def test_a_key_is_needed_where_it_is_set(run_folder, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    with serving({"base": find_model(f"{run_folder}/demo@pretrain")}, slots=2) as served:
        for wrong in (b"", b"Bearer x", KEY.encode(), b"Bearer \xff"):
            answer = post(served, {b"Authorization": wrong})
            assert answer.status_code == 401
            assert KEY not in answer.text
        assert served.ask("GET", "/v1/models").status_code == 401
        assert served.ask("GET", f"/v1/models?key={KEY}").status_code == 401
        assert post(served, {"Authorization": f"Bearer {KEY}"}).status_code == 200
        assert served.client(KEY).models.list().data[0].id == "base"


def test_a_tunnel_s_name_is_allowed_if_said(run_folder):
    found = {"base": find_model(f"{run_folder}/demo@pretrain")}
    address = Address(port=0, allowed=("pion.example",))
    with serving(found, slots=2, address=address) as served:
        assert post(served, {"Host": "pion.example"}).status_code == 200
        assert post(served, {"Host": "other.example"}).status_code == 421


FRONT_END = "http://localhost:3000"


def test_pages_of_an_allowed_origin_may_ask_and_read(run_folder, monkeypatch):
    monkeypatch.setenv(API_KEY, KEY)
    found = {"base": find_model(f"{run_folder}/demo@pretrain")}
    with serving(found, slots=2, address=Address(port=0, origins=(FRONT_END,))) as served:
        asks = {
            "Origin": FRONT_END,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
            "Access-Control-Request-Private-Network": "true",
        }
        answer = served.ask("OPTIONS", "/v1/completions", headers=asks)
        assert answer.status_code == 204
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, POST"
        wanted = asks["Access-Control-Request-Headers"]
        assert answer.headers["Access-Control-Allow-Headers"] == wanted
        assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
        ours = {"Origin": FRONT_END, "Authorization": f"Bearer {KEY}"}
        answers = [
            answer,
            post(served, ours),
            post(served, ours, stream=True),
            post(served, ours, max_tokens=-1),
            post(served, {"Origin": FRONT_END}),
        ]
        for answer in answers:
            assert answer.headers["Access-Control-Allow-Origin"] == FRONT_END
            assert answer.headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in answer.headers
        assert answers[-1].status_code == 401  # the key is needed all the same
        hosts = asks | {"Host": "attacker.example"}
        assert served.ask("OPTIONS", "/v1/completions", headers=hosts).status_code == 421
        for other in ("http://localhost:3001", "https://localhost:3000", "null", f"{FRONT_END}.x"):
            foreign = asks | {"Origin": other}
            answer = served.ask("OPTIONS", "/v1/completions", headers=foreign)
            assert answer.status_code == 403
            assert "Access-Control-Allow-Origin" not in answer.headers


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "", "localhost:3000", "http://a.example/", "ftp://a", "http://u@a", "h\n"],
)
def test_an_origin_that_names_no_website_is_refused(origin):
    with pytest.raises(BadInput, match="an origin is https://NAME or http://NAME"):
        Address(origins=(origin,)).rules()

"""Where a web server listens, and who may ask it."""

from __future__ import annotations

import argparse
import errno
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.console.formats import printable

API_KEY = "PION_API_KEY"
# A shorter key could be guessed, and is not recognized as a secret in messages.
SHORTEST_KEY = 12
# How long a client may leave an answer unread.
UNREAD_SECONDS = 60.0
# What the kernel keeps of it, in bytes. By itself, it takes megabytes, which are whole answers.
UNREAD_BYTES = 32 << 10
_ORIGIN = re.compile(r"https?://([a-z0-9-]+(\.[a-z0-9-]+)*|\[[0-9a-f:]+\])(:\d{1,5})?")
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Rules:
    """Who may ask a server.

    Attributes:
        hosts: the names that a request may call the server by, in lower case and without a port.
        key: the key that all requests but that for the page need, or None.
        origins: whose pages may use the server from a browser, besides its own.
    """

    hosts: frozenset[str]
    key: str | None = None
    origins: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Address:
    """Where a server listens: `--host`, `--port` (0: any free one) and `--allow-host`.

    `allowed` are further names by which requests may call the server, and `origins` those of the
    `--allow-origin`s.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allowed: Sequence[str] = ()
    origins: Sequence[str] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def rules(self) -> Rules:
        """Return who may ask the server. The key is the value of PION_API_KEY.

        Raises BadInput if others can reach the server and there is no key, and for an origin that
        names no page.
        """
        key = os.environ.get(API_KEY) or None
        if key is None and not self.is_loopback:
            raise BadInput(
                f"--host {self.host}: other machines could reach this server, and it has no key. "
                f"Nothing was started. Set one (export {API_KEY}=$(openssl rand -hex 24)), or "
                "leave out --host and use a tunnel: ssh -L "
                f"{self.port}:127.0.0.1:{self.port} MACHINE"
            )
        if key is not None and not (len(key) >= SHORTEST_KEY and key.isascii() and key.isalnum()):
            raise BadInput(
                f"{API_KEY} needs {SHORTEST_KEY} or more letters and digits: openssl rand -hex 24"
            )
        names = {self.host.lower().strip("[]"), *(name.lower() for name in self.allowed)}
        if self.is_loopback:
            names |= LOOPBACK_NAMES
        elif self.host in ("0.0.0.0", "::"):
            names |= LOOPBACK_NAMES | _own_names()
        return Rules(frozenset(names), key, frozenset(map(_checked_origin, self.origins)))

    def listen(self) -> socket.socket:
        """Return a socket that is bound to the address. Raises BadInput if it can't be."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The kernel ends connections whose reader takes nothing for so long.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)
        try:
            listener.bind((self.host, self.port))
        except (OSError, OverflowError) as error:
            listener.close()
            raise BadInput(_why_not(self, error)) from None
        return listener


def _why_not(address: Address, error: OSError | OverflowError) -> str:
    if isinstance(error, OverflowError):
        return f"--port {address.port}: a port is a number from 0 to 65535"
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {address.port} is in use: another server runs there, perhaps an earlier one "
            "of yours. Nothing was started. Stop that server, or use another port (--port "
            f"{address.port + 1 if address.port < 65535 else 8000}; --port 0 takes any free one)"
        )
    if error.errno == errno.EACCES:
        return f"--port {address.port}: ports below 1024 need root. Use --port 8000"
    return f"--host {address.host}: this machine can't listen there ({error.strerror or error})"


def _checked_origin(text: str) -> str:
    """Return an origin as browsers write it. Raises BadInput.

    `*` would let every website read the answers. `null` is the origin of any file and frame.
    """
    if _ORIGIN.fullmatch(text.lower()):
        return text.lower()
    raise BadInput(
        f"--allow-origin {printable(text)[:100]}: an origin is https://NAME or http://NAME, with "
        "the port if it has one, and nothing after it, such as http://localhost:3000. Nothing was "
        "started"
    )


def _own_names() -> set[str]:
    """Return the names and addresses by which others may know this machine."""
    name = socket.gethostname().lower()
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None)}
    except OSError:
        found = set()
    return {name, *found}


def add_address(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the options to a command whose server listens on `port` by default."""
    parser.add_argument(
        "--host",
        default=Address.host,
        help=f"the address to listen on (default: {Address.host}, which only this machine can "
        "reach); any other needs a key in PION_API_KEY",
    )
    parser.add_argument(
        "--port",
        type=int,
        metavar="N",
        default=port,
        help=f"the port to listen on; 0: any free one (default: {port})",
    )
    parser.add_argument(
        "--allow-host",
        metavar="NAME",
        action="append",
        default=[],
        help="also answer requests that call the server by this name, as through a tunnel",
    )


def address_of(args: argparse.Namespace) -> Address:
    """Return the parsed options of `add_address`."""
    return Address(args.host, args.port, tuple(args.allow_host))


# ---------------------------------------------------------------- the options of the page of a run


# Next to the port of `pion serve`.
PORT = 8008


def add_page(parser: argparse.ArgumentParser) -> None:
    """Add `--web` and where the page listens."""
    parser.add_argument(
        "--web", action="store_true", help="show a page in the browser that follows the run"
    )
    add_address(parser, PORT)


def page_address(args: argparse.Namespace) -> Address | None:
    """Return where the page listens; None without `--web`.

    Raises BadInput for an option that is only for the page, or that does not go with the page.
    """
    address = address_of(args)
    if args.web:
        if getattr(args, "json", False) or getattr(args, "once", False):
            raise BadInput("--web shows a page until it is stopped. Leave out --json or --once")
        return address
    if address != Address(port=PORT):
        raise BadInput("--host, --port and --allow-host are for the page. Add --web")
    return None

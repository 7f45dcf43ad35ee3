"""The options of web servers: where they listen."""

from __future__ import annotations

import argparse

from pipeline.web.address import Address


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

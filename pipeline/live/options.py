"""The options of the commands that can show the page."""

from __future__ import annotations

import argparse

from pion.errors import BadInput
from pipeline.web.address import Address, add_address, address_of

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

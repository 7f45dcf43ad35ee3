"""The command `python -m pion.bench`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pion.bench.options import Options, add_options
from pion.errors import PionError
from pion.train.allocator import let_segments_grow

EPILOG = """\
exit codes:
  0    every row is right or measured
  1    a row is wrong, or the card failed
  2    the request is invalid; nothing was measured
  130  interrupted; the file has the rows so far
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the bench and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pion.bench",
        description="Check that this card computes right, then measure how fast it is.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, "the current folder")
    options = Options.of(parser.parse_args(argv))
    let_segments_grow()  # as training does
    try:
        from pion.bench.run import bench  # imports torch, which takes seconds

        return bench(options, Path(), lambda text: print(text, flush=True))
    except PionError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("PION_DEBUG"):
            raise
        print(
            f"error: this is a bug in Pion: {type(error).__name__}: {error}. Rows that were "
            "finished are in the file. PION_DEBUG=1 shows the traceback",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())

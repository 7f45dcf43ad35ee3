"""A process that compiles a grammar and does nothing else, for `pion.generation.grammar`.

llguidance has limits, but some schemas of a kilobyte take minutes and gigabytes all the same. This
process has little time and memory. What it prints is the mistake in the grammar, if there is one.
"""

from __future__ import annotations

import resource
import sys

# The memory that a grammar may take, in bytes.
MEMORY = 1 << 30


def main() -> None:
    """Check the grammar on the standard input, in so many seconds of a CPU as the argument says."""
    from llguidance import LLMatcher

    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(LLMatcher.validate_grammar(sys.stdin.read()))


if __name__ == "__main__":
    main()

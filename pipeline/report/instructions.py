"""How well a tuned model follows the built-in instructions, in words and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("it was told to", "met", "by accident", "loosely", "unfinished")


def instructions_in_words(scored: Mapping[str, Any]) -> str:
    """Return the score in a line."""
    of = scored["met"]
    verdict = "no more than by accident: at chance, no claim. " if scored["at_chance"] else ""
    return (
        f"{verdict}met {_share(of['strict'])}, by accident {_share(of['accident'])}, loosely "
        f"{_share(of['loose'])} ({of['prompts']} prompts, {of['unfinished']:.1%} of the answers "
        f"unfinished after {scored['most_tokens']} tokens)"
    )


def kinds_in_words(scored: Mapping[str, Any]) -> list[str]:
    """Return a line for each kind of prompt."""
    width = max(map(len, scored["kinds"]))
    return [
        f"  {kind.ljust(width)}  met {_share(met['strict'])}, by accident "
        f"{_share(met['accident'])}, loosely {_share(met['loose'])}, unfinished "
        f"{met['unfinished']:.0%}"
        for kind, met in scored["kinds"].items()
    ]


def instruction_rows(scored: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """Return the rows of COLUMNS, one for each kind of prompt."""
    return [
        (
            kind.replace("_", " "),
            _share(met["strict"]),
            _share(met["accident"]),
            _share(met["loose"]),
            f"{met['unfinished']:.0%}",
        )
        for kind, met in scored["kinds"].items()
    ]


def _share(share: Mapping[str, float]) -> str:
    return f"{share['share']:.1%} ± {share['sem']:.1%}"

"""Turn records of any layout into conversations that a job reads, with the roles that they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pion.data.chat.conversation import ALIASES, ROLES, role_of
from pion.data.chat.messages import KNOWN_ROLES
from pion.data.records.turns import known_role
from pion.errors import BadInput
from pion.later_fields import closest, shown
from pipeline.console.formats import some
from pipeline.new.layouts import NEXT_TO_TURNS, PairColumns, Record, TurnsColumn


def parse_roles(text: str | None) -> dict[str, str]:
    """Return what `agent=assistant,customer=user` says. Raises BadInput if it says nothing."""
    roles: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, meaning = part.partition("=")
        role = role_of(meaning) or meaning.strip().lower()
        if not equals or not name.strip() or role not in KNOWN_ROLES:
            raise BadInput(
                f"--roles {text}: {shown(part)} should be NAME=ROLE, such as agent=assistant. The "
                f"roles are {', '.join(KNOWN_ROLES)}"
            )
        roles[name.strip().lower()] = role
    return roles


def meaning_of(name: str, roles: Mapping[str, str]) -> str | None:
    """Return the role that a name in the data means; None if neither `roles` nor Pion knows it."""
    known = name.strip().lower()
    return roles.get(known) or known_role(known.replace("-", "_"))


def names_of_roles(records: Iterable[tuple[str, Record]], layout: TurnsColumn) -> dict[str, str]:
    """Return each name of a role, and the `file:line` at which it is first."""
    found: dict[str, str] = {}
    for where, record in records:
        turns = record.get(layout.column)
        for turn in turns if isinstance(turns, list) else ():
            name = turn.get(layout.role_key) if isinstance(turn, dict) else None
            if isinstance(name, str) and name.strip():
                found.setdefault(name, where)
    return found


def unknown_roles(found: Mapping[str, str], roles: Mapping[str, str]) -> BadInput:
    """Return the refusal of roles that nobody knows, with the option that maps them."""
    names = [name for name in found if meaning_of(name, roles) is None]
    first = names[0]
    near = closest(first.strip().lower(), (*KNOWN_ROLES, *ROLES, *ALIASES))
    given = ",".join(f"{name}={role}" for name, role in zip(names, ("user", "assistant")))
    return BadInput(
        f"{found[first]}: unknown role {shown(first)}{near or '.'} Unknown in all: "
        f"{some([*map(shown, names)], 4)}. Say what each of them means, for example: "
        f"--roles '{given}'. The roles are {', '.join(KNOWN_ROLES)}"
    )


def as_conversation(
    record: Record, layout: TurnsColumn | PairColumns, roles: Mapping[str, str]
) -> dict[str, Any]:
    """Return a record under the keys that a job reads. What is no turn stays as it is."""
    kept = {key: record[key] for key in NEXT_TO_TURNS if record.get(key)}
    if isinstance(layout, PairColumns):
        named = ("prompt", layout.question), ("context", layout.context), ("system", layout.system)
        texts = {key: record.get(column) for key, column in named if column is not None}
        texts["completion"] = record.get(layout.answer)
        return kept | {key: _text(value) for key, value in texts.items()}
    turns = record.get(layout.column)
    if roles and isinstance(turns, list):
        turns = [_with_role(turn, layout, roles) for turn in turns]
    return kept | {"messages": turns}


def _with_role(turn: Any, layout: TurnsColumn, roles: Mapping[str, str]) -> Any:
    name = turn.get(layout.role_key) if isinstance(turn, dict) else None
    role = meaning_of(name, roles) if isinstance(name, str) else None
    return turn if role is None else {**turn, layout.role_key: role}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value

"""Describe definitions of the Python standard library in words that fit into sentences."""

from __future__ import annotations

import ast
import random
import re
import sys
from dataclasses import dataclass

from pion.data.documents import python_qa_wording as wording
from pion.data.documents.prose import prose
from pion.data.documents.python_docs import Definition

# The longest answer, in characters.
ANSWER_CHARS = 280


@dataclass(frozen=True)
class Topic:
    """A definition in words that fit into sentences."""

    definition: Definition
    full: str  # email.header.Header.append
    short: str  # append
    module: str  # email.header
    kind: str  # module, class, exception, function, method, property
    call: str  # Header.append(s, charset=None, errors='strict')
    answer: str  # the first sentences of its docstring
    summary: str  # the first sentence
    parameters: tuple[tuple[str, str | None], ...] | None  # (name, default); None = not known

    def ask(self, rng: random.Random, templates: tuple[str, ...], **more: str) -> str:
        """Return one of the templates, with this definition's words filled in."""
        builtin = self.module == "builtins"
        template = rng.choice([t for t in templates if not (builtin and "{module}" in t)])
        words = {name: getattr(self, name) for name in ("full", "short", "module", "kind", "call")}
        return template.format(**words, **more)


def topic_of(definition: Definition) -> Topic | None:
    """Return the definition in words; None if it is private or its docstring gives no answer."""
    module, name = _public_module(definition.module), definition.name
    if any(part.startswith("_") for part in (*module.split("."), *name.split("."))):
        return None
    sentences = _sentences(definition.docstring)
    if not sentences:
        return None
    full = ".".join(part for part in (module, name) if part)
    full = full.removeprefix("builtins.")
    short = full.rpartition(".")[2]
    kind = definition.kind
    if kind == "class" and re.search(r"(Error|Exception|Warning)$", short):
        kind = "exception"
    call = name.rpartition(".")[0] + "." if kind == "method" else full.removesuffix(short)
    call += definition.signature if len(definition.signature) <= 70 else f"{short}(…)"
    answer = sentences[0]
    for sentence in sentences[1:]:
        if len(answer) + len(sentence) > ANSWER_CHARS:
            break
        answer += f" {sentence}"
    parameters = _read_parameters(definition.signature)
    return Topic(definition, full, short, module, kind, call, answer, sentences[0], parameters)


def _public_module(module: str) -> str:
    """Return the name that people import: `io` for `_io`, `os` for `posix`."""
    public = {"posix": "os", "nt": "os"}.get(module, module.lstrip("_"))
    return public if public in sys.stdlib_module_names else module


def _sentences(docstring: str) -> list[str]:
    """Return the whole sentences of a docstring's first paragraph of English."""
    for paragraph in prose(docstring).split("\n\n"):
        if re.match(r"[\w.]+\(.*\)\s*(->.*|:)?$", paragraph):
            continue  # the signature
        text = re.sub(r"^[\w.()]+ (--|-) ", "", paragraph.strip())
        if "\n" in text or ">" in text or re.search(r"XXX|TODO|FIXME|\.\.\.$", text):
            return []
        if not re.match(r"[A-Z][a-z]*\b", text):
            return []
        if re.fullmatch(r"[^.!?:;]+", text):
            text += "."
        parts = re.split(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<=[.!?])\s+(?=[A-Z])", text)
        whole = [part for part in parts if re.search(r"\w[)\]\"'`]*[.!?]$", part)]
        return whole if len(whole[:1]) and whole[0] == parts[0] and _fits(whole[0]) else []
    return []


def _fits(sentence: str) -> bool:
    return len(sentence) <= ANSWER_CHARS and len(sentence.split()) >= 3


def goal_of(summary: str) -> str:
    """Return the goal of a question that this first sentence answers; "" if unclear."""
    text = summary.rstrip(".")
    if re.search(r"[.;:()]|self\b", text) or len(text) > 110:
        return ""
    if match := re.match(r"Returns? (?:True|true) (?:if|iff|when) (.+)", text):
        return f"check whether {match[1]}"
    if match := re.match(r"Returns? whether (.+)", text):
        return f"check whether {match[1]}"
    if match := re.match(r"Returns? ((?:the|a|an|all) .+)", text):
        return f"get {match[1]}"
    verb, _, rest = text.partition(" ")
    return f"{verb.lower()} {rest}" if verb.lower() in wording.INFINITIVES and rest else ""


def _read_parameters(signature: str) -> tuple[tuple[str, str | None], ...] | None:
    """Return the names and defaults of a signature's parameters; None if it is not Python."""
    if not signature:
        return None
    try:
        function = ast.parse(f"def {signature}: pass").body[0]
    except SyntaxError:
        return None
    assert isinstance(function, ast.FunctionDef)
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults += [*arguments.defaults, *arguments.kw_defaults]
    found = [
        (argument.arg, ast.unparse(default) if default is not None else None)
        for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True)
    ]
    found += [(f"*{arguments.vararg.arg}", None)] if arguments.vararg else []
    found += [(f"**{arguments.kwarg.arg}", None)] if arguments.kwarg else []
    return tuple(found)

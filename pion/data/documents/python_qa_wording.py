"""The wording of the questions about the Python standard library, and of the definitions in them.

In the templates `{full}` is email.header.Header.append, `{short}` append, `{module}` email.header,
`{kind}` method and `{call}` Header.append(s, charset=None, errors='strict').
"""

from __future__ import annotations

import ast
import random
import re
import sys
from dataclasses import dataclass

from pion.data.documents.python_docs import Definition, prose

SYSTEM = (
    "You are a helpful assistant who knows the Python standard library.",
    "You answer questions about Python.",
    "You are a Python expert. Be brief.",
    "Answer as Python's own documentation would.",
)
SYSTEM_BRIEF = ("Answer in one sentence.", "Be as brief as you can.", "One sentence, please.")

# What is asked of a definition, by its kind.
ABOUT = {
    "callable": (
        "What does `{call}` do?",
        "What does {full} do?",
        "Explain `{call}`.",
        "Explain what {full} does.",
        "Describe the {kind} {full}.",
        "What is {full} for?",
        "I found a call of {full} in some code. What does it do?",
        "Can you tell me what {short} in the {module} module does?",
        "Tell me about the {kind} {full}.",
        "What happens when I call `{call}`?",
        "What's the purpose of {full}?",
        "help({full})",
        "What is the {kind} `{call}` good for?",
        "Please explain {full} to me.",
    ),
    "module": (
        "What is the {full} module?",
        "What is the module {full} for?",
        "What does `import {full}` give me?",
        "Describe the {full} module.",
        "I see `import {full}` at the top of a file. What is it?",
        "Tell me about the standard library's {full} module.",
        "What can I do with {full}?",
    ),
    "class": (
        "What is the class {full}?",
        "What is {full}?",
        "What is {full} used for?",
        "What is a {short} in the {module} module?",
        "Describe the class {full}.",
        "Explain {full}.",
        "I came across the class {full}. What is it?",
        "Tell me about {full}.",
        "help({full})",
    ),
    "property": (
        "What is {full}?",
        "What does the property {full} hold?",
        "Describe the property {full}.",
        "Tell me about the property {short} in the {module} module.",
    ),
    "exception": (
        "What does the exception {full} mean?",
        "What is {full}?",
        "My program stopped with {short} from {module}. What is that?",
        "Explain the exception {full}.",
    ),
}
# Questions, by what is asked.
ASK = {
    "brief": (
        "In one sentence, what is {full}?",
        "Summarise {full} in a sentence.",
        "Briefly, what is {full} for?",
        "Give me the short version: what is {full}?",
    ),
    "docstring": (
        "Write the docstring of `{call}`.",
        "Write a docstring for this {kind}:\n\ndef {call}:",
        "What does the docstring of {full} say?",
        "Document `{call}` from the {module} module.",
    ),
    "which": (
        "Which {kind} in the {module} module does this: {summary}",
        'Which {kind} of {module} is documented as "{summary}"?',
        "Find me the {kind} in {module} with this description: {summary}",
    ),
    "returns": (
        "What does {full} return?",
        "What do I get back from `{call}`?",
        "What is the result of `{call}`?",
        "What kind of value does {full} give?",
    ),
    "parameters": (
        "What parameters does {full} take?",
        "What are the arguments of {full}?",
        "Which arguments can I give to {full}?",
    ),
    "signature": (
        "How do I call {full}?",
        "What is the signature of {full}?",
        "Show me the signature of {full}.",
    ),
    "default": (
        "What is the default of {parameter} in `{call}`?",
        "If I leave out {parameter} when calling {full}, what is used?",
    ),
    "methods": (
        "What methods does {full} have?",
        "Name some methods of the class {full}.",
        "What can I call on a {full} object?",
    ),
}
# Second questions, by what is asked.
AND = {
    "parameters": ("And what arguments does it take?", "What are its parameters?"),
    "signature": ("How do I call it?", "What is its signature?", "How is it called?"),
    "module": ("Where is it defined?", "Which module is it in?", "Where do I find it?"),
    "summary": ("Shorter, please.", "And in one sentence?", "Can you say that more briefly?"),
    "about": ("What does it do?", "Explain it to me.", "What is it for?", "Tell me more about it."),
}

INFINITIVES = frozenset(
    re.findall(
        r"\w+",
        """
        add adjust append apply attach build calculate call cancel change check clear close combine
        compare compile compute concatenate configure connect construct convert copy count create
        decode delete determine disable display download draw enable encode ensure escape evaluate
        execute expand extract fetch fill filter find flush format generate get group handle import
        initialize insert invoke iterate join launch limit list load lock look make map mark match
        merge modify move multiply normalize open override parse perform play prepare print process
        put quote raise read receive record redirect register release reload remove rename replace
        report reset resize restore retrieve reverse rotate round run save scan search seek select
        send serialize set shuffle sort split start stop store subtract switch test transform
        translate truncate try unregister update validate verify wait walk wrap write
        """,
    )
)
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
        fields = {name: getattr(self, name) for name in ("full", "short", "module", "kind", "call")}
        return template.format(**fields, **more)


def topic_of(definition: Definition) -> Topic | None:
    """Return the definition in words; None if it is private or its docstring gives no answer."""
    module, name = _public_module(definition.module), definition.name
    if any(part.startswith("_") for part in (*module.split("."), *name.split("."))):
        return None
    sentences = _sentences(definition.docstring)
    if not sentences:
        return None
    full = ".".join(filter(None, (module, name))).removeprefix("builtins.")
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
        sentences = [part for part in parts if re.search(r"\w[)\]\"'`]*[.!?]$", part)]
        if not sentences or sentences[0] != parts[0]:
            return []
        return (
            sentences
            if len(sentences[0]) <= ANSWER_CHARS and len(sentences[0].split()) >= 3
            else []
        )
    return []


def goal_of(summary: str) -> str:
    """Return the goal of a question that this first sentence answers; "" if unclear."""
    text = summary.rstrip(".")
    if re.search(r"[.;:()]|self\b", text) or len(text) > 110:
        return ""
    for pattern, to in (
        (r"Returns? (?:True|true) (?:if|iff|when) (.+)", "check whether"),
        (r"Returns? whether (.+)", "check whether"),
        (r"Returns? ((?:the|a|an|all) .+)", "get"),
    ):
        if match := re.match(pattern, text):
            return f"{to} {match[1]}"
    verb, _, rest = text.partition(" ")
    return f"{verb.lower()} {rest}" if verb.lower() in INFINITIVES and rest else ""


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
    parameters = [
        (argument.arg, ast.unparse(default) if default is not None else None)
        for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True)
    ]
    parameters += [(f"*{arguments.vararg.arg}", None)] if arguments.vararg else []
    parameters += [(f"**{arguments.kwarg.arg}", None)] if arguments.kwarg else []
    return tuple(parameters)

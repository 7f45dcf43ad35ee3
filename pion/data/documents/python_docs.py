"""Read text that every machine has: the prose inside the installed Python standard library.

This is about 3 MB of English about programming: docstrings, comments, `pydoc` topics and the
docstrings of compiled modules. The same Python gives the same documents in the same order; another
version of Python gives slightly different documents.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import keyword
import os
import re
import sys
import sysconfig
import textwrap
import tokenize
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import BuiltinImporter, ExtensionFileLoader
from itertools import chain, filterfalse, groupby
from types import ModuleType

from pion.data.documents.file_to_documents import Document
from pion.errors import BadInput
from pion.garbage_collection import without_collection

# Folders of the library that have tests, examples or other people's packages.
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "turtledemo"}
# Importing readline changes the terminal; the other modules exist to test the interpreter.
NOT_IMPORTED = re.compile(r"readline$|_?xx|_test|_ctypes_test")
# A paragraph with fewer letters than this is too short to count as a repetition.
RECOGNISED_LETTERS = 40
# Paragraphs with these words are licenses.
LICENSE = re.compile(r"copyright|licen[sc]e|warrant|all rights reserved|permission to use", re.I)

TWO_WORDS = re.compile(r"\s*([A-Za-z_]\w*)[ \t]+([A-Za-z_]\w*)")
PYTHON_WORDS = {*keyword.kwlist, *keyword.softkwlist}


@dataclass(frozen=True)
class Definition:
    """A documented module, class, function or method of the standard library."""

    origin: str  # "email/header.py", or "builtins" for a compiled module
    module: str  # "email.header"
    name: str  # "Header.append"; "" for the module itself
    kind: str  # "module" | "class" | "function" | "method" | "property"
    signature: str  # "append(s, charset=None, errors='strict')"; "" if it can't be known
    docstring: str  # as inspect.cleandoc returns it


@dataclass(frozen=True)
class SourceFile:
    """The kept parts of one file. Its syntax tree, fifty times as large, is not kept."""

    origin: str
    text: str
    groups: tuple[list[Definition], ...]  # a class is in one group with its methods
    comments: tuple[str, ...]


def is_held_out(what: str, share: float) -> bool:
    """Return whether a text, or a file's text, is held out of training, as a `share` of all is.

    This depends only on `what`: the text itself, so that all of its copies are on the same side, or
    the name of a file, so that pretraining and fine-tuning hold out the same files.
    """
    digest = hashlib.blake2b(what.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def documents(code: bool = False) -> Iterator[Document]:
    """Yield the standard library's prose, file by file; with `code` also its source.

    A class with its methods is one document, and so are the comments of a file. A paragraph that is
    long enough to recognize comes only once, so no paragraph is both trained on and held out.
    Raises BadInput if Python was installed without its library's source.
    """
    seen: set[str] = set()
    for origin, parts in _texts():
        fresh = [_unseen(part, seen) for part in parts]
        if any(fresh):
            yield Document("\n\n".join(part for part in fresh if part), origin)
    if code:
        for source in source_files():
            yield Document(source.text, source.origin)


def _unseen(text: str, seen: set[str]) -> str:
    """Return the text without paragraphs that came before; "" if all of the text came before.

    Paragraphs that differ only in layout, case, digits or punctuation count as the same paragraph:
    topics repeat docstrings with another indent, and generated modules repeat each other with
    different numbers.
    """
    paragraphs = []
    for paragraph in text.split("\n\n"):
        recognised = letters_of(paragraph)
        if len(recognised) < RECOGNISED_LETTERS or recognised not in seen:
            paragraphs.append(paragraph)
        seen.add(recognised)
    fresh = "\n\n".join(paragraphs)
    if text in seen:
        return ""
    seen.add(text)
    return fresh


def letters_of(text: str) -> str:
    """Return a text's letters in lower case: texts that differ only in layout or numbers match."""
    return re.sub(r"[\W\d_]+", "", text).lower()


def definitions() -> Iterable[Definition]:
    """Return every documented definition of the standard library, each distinct docstring once."""
    in_source = (group for source in source_files() for group in source.groups)
    by_letters: dict[str, Definition] = {}
    for definition in chain.from_iterable(chain(in_source, _compiled_groups())):
        by_letters.setdefault(letters_of(definition.docstring), definition)
    return by_letters.values()


def _texts() -> Iterator[tuple[str, list[str]]]:
    """Yield (origin, parts) of every document, before duplicates are dropped."""
    from pydoc_data.topics import topics

    for source in source_files():
        for group in source.groups:
            yield source.origin, [prose(d.docstring) for d in group]
        yield source.origin, list(source.comments)
    for group in _compiled_groups():
        yield group[0].origin, [prose(d.docstring) for d in group]
    for name, topic in sorted(topics.items()):
        yield f"topics/{name}", [prose(textwrap.dedent(topic))]


# ---------------------------------------------------------------- modules with source


def source_files() -> Iterator[SourceFile]:
    """Yield every source file of the standard library except its tests, by path.

    Raises BadInput if there is none.
    """
    library, any_file = sysconfig.get_path("stdlib"), False
    for path in sorted(_source_paths(library)):
        if (source := _source_file(library, path)) is not None:
            any_file = True
            yield source
    if not any_file:
        raise BadInput(
            f"python-docs: {library} has no source files (this Python was installed without them). "
            "Use a Python from python.org, uv or your distribution, or a different data source"
        )


def _source_paths(library: str) -> Iterator[str]:
    """Yield where the sources are in the library, without the folders that are not the library."""
    for folder, inner, names in os.walk(library):
        inner[:] = (name for name in inner if name not in NOT_LIBRARY)
        for name in names:
            if name.endswith(".py"):
                yield os.path.relpath(f"{folder}/{name}", library)


@cache
def _source_file(library: str, path: str) -> SourceFile | None:
    """Return a file of the library; None if it is a template or an example of a syntax error."""
    try:
        # A tree has so many objects that Python would search all of them for garbage.
        with tokenize.open(f"{library}/{path}") as file, without_collection():
            text = file.read()
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(text)
            groups = tuple(filter(None, _source_definitions(path, tree)))
            english = tuple(comments(text, tree))
            del tree  # before Python searches again
            return SourceFile(path, text, groups, english)
    except (SyntaxError, UnicodeDecodeError):
        return None


def _source_definitions(origin: str, tree: ast.Module) -> Iterator[list[Definition]]:
    """Yield the documented definitions of a file, in groups, of which some are empty."""
    module = origin.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def define(node: ast.AST, name: str, kind: str) -> list[Definition]:
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        docstring = ast.get_docstring(node)
        if not docstring:
            return []
        signature = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(re.search(r"property|\.[gs]etter", ast.unparse(d)) for d in node.decorator_list):
                return [Definition(origin, module, name, "property", "", docstring)]
            arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
            signature = f"{node.name}({arguments})"
        return [Definition(origin, module, name, kind, signature, docstring)]

    def walk(body: list[ast.stmt], outer: str) -> Iterator[list[Definition]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield define(node, outer + node.name, "function")
            elif isinstance(node, ast.ClassDef):
                group = define(node, outer + node.name, "class")
                inner = f"{outer}{node.name}."
                for child in node.body:
                    if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                        group += define(child, inner + child.name, "method")
                yield group
                yield from walk([c for c in node.body if isinstance(c, ast.ClassDef)], inner)
            elif isinstance(node, ast.If | ast.Try):
                yield from walk(node.body, outer)

    yield define(tree, "", "module")
    yield from walk(tree.body, "")


# ---------------------------------------------------------------- compiled modules


@lru_cache(maxsize=1)
def _compiled_groups() -> tuple[list[Definition], ...]:
    return tuple(filter(None, chain.from_iterable(map(_compiled_definitions, _compiled_modules()))))


def _compiled_modules() -> Iterator[ModuleType]:
    """Import and yield the standard library's modules that are written in C, by name."""
    for name in sorted(filterfalse(NOT_IMPORTED.match, sys.stdlib_module_names)):
        with warnings.catch_warnings(action="ignore"):
            try:
                spec = importlib.util.find_spec(name)
                loader = spec.loader if spec else None
                if not (isinstance(loader, ExtensionFileLoader) or loader is BuiltinImporter):
                    continue
                module = importlib.import_module(name)
            except (ImportError, ValueError):
                continue  # its shared library is not on this machine (Tk, for example)
        yield module


def _compiled_definitions(module: ModuleType) -> Iterator[list[Definition]]:
    """Yield the documented definitions of a compiled module, in groups, of which some are empty."""

    def define(thing: object, name: str, kind: str) -> list[Definition]:
        docstring = getattr(thing, "__doc__", None)
        if not isinstance(docstring, str) or not docstring.strip():
            return []
        docstring = inspect.cleandoc(docstring)
        short = name.rpartition(".")[2]
        arguments = getattr(thing, "__text_signature__", None)
        signature = ""
        if isinstance(arguments, str):
            signature = short + re.sub(r"^\((\$\w+|self|cls)(, )?(/(, )?)?", "(", arguments)
        else:  # the older way to document a signature: the call in the first line
            head, _, rest = docstring.partition("\n")
            if head.startswith(f"{short}(") and rest.strip():
                signature, docstring = head.partition(" -> ")[0], inspect.cleandoc(rest)
        return [Definition(module.__name__, module.__name__, name, kind, signature, docstring)]

    yield define(module, "", "module")
    for name, thing in sorted(vars(module).items()):
        if name.startswith("__") or f"__{name}__" in vars(module):
            continue  # the second case is hooks that programs replace, such as sys.excepthook
        if inspect.isclass(thing):
            if thing.__module__.partition(".")[0] not in (module.__name__, name):
                continue  # re-exported from another module, which documents it
            group = define(thing, name, "class")
            for attribute, method in sorted(vars(thing).items()):
                if inspect.isroutine(method):
                    group += define(method, f"{name}.{attribute}", "method")
            yield group
        elif inspect.isroutine(thing):
            yield define(thing, name, "function")


@cache
def prose(docstring: str) -> str:
    """Return a docstring's English text, unwrapped, without examples, licenses, tables and
    markup."""
    text = re.sub(r":[a-z:]+:`~?([^`<]+?)(?:\s*<[^>]*>)?`", r"\1", docstring)  # :func:`name`
    text = re.sub(r"``([^`]+)``", r"\1", text)
    return "\n\n".join(filter(None, map(_paragraph, re.split(r"\n\s*\n", text))))


def _paragraph(text: str) -> str:
    """Return a paragraph that is ready to read, or "" if it is not English."""
    lines = [line.rstrip() for line in text.split("\n") if re.search(r"\w", line)]
    text = "\n".join(lines)
    letters = sum(map(str.isalpha, text)) + sum(map(text.count, " ,.\n"))
    if ">>>" in text or letters < 0.8 * len(text) or LICENSE.search(text):
        return ""
    if re.search(r"[=(:]", text) and _is_code(text):
        return ""
    plain = not any(re.match(r"\s|[-*+•]\s|\d+[.)]\s|:\w+", line) for line in lines[1:])
    return " ".join(line.strip() for line in lines) if plain else text


def comments(text: str, tree: ast.Module) -> Iterator[str]:
    """Yield the English comments of a file, each run of `#` lines unwrapped into paragraphs."""
    lines = text.splitlines()
    marked = [
        number
        for number, line in enumerate(lines, 1)
        if line.lstrip().startswith("#") and not line.startswith("#!")
    ]
    outside = sorted({*marked} - _lines_inside_strings(tree, marked))
    # Numbers of a run rise as fast as their places in the list.
    for _, run in groupby(enumerate(outside), key=lambda pair: pair[1] - pair[0]):
        comment = "\n".join(re.sub(r"^\s*#+ ?", "", lines[number - 1]) for _, number in run)
        # Most comments are short, and to parse one takes long.
        if (
            len(comment.split()) >= 4
            and not _is_code(comment)
            and len((cleaned := prose(comment)).split()) >= 4
        ):
            yield cleaned


def _lines_inside_strings(tree: ast.Module, marked: Sequence[int]) -> set[int]:
    """Return the numbers of the lines of all strings that have several lines, one of them `marked`.

    Most nodes of a tree have no marked line, so nothing in them has one. They are not looked into.
    """
    lines: set[int] = set()
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        begin: int | None = getattr(node, "lineno", None)
        end: int | None = getattr(node, "end_lineno", None)
        if begin and end and bisect_left(marked, begin) == bisect_right(marked, end):
            continue
        if isinstance(node, ast.Constant | ast.JoinedStr) and begin and end:
            lines.update(range(begin, end + 1))
        else:
            nodes.extend(ast.iter_child_nodes(node))
    return lines


def _is_code(text: str) -> bool:
    """Return whether a text is code: an example, or code that was commented out."""
    # Most texts begin with two words. No Python does, and to parse takes a hundred times as long.
    if (pair := TWO_WORDS.match(text)) and PYTHON_WORDS.isdisjoint(pair.groups()):
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(textwrap.dedent(text))
    except (SyntaxError, ValueError):
        return False
    return True

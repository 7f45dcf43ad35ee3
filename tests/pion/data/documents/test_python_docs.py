"""The standard library: which prose is included, excluded and held out, and what is asked about it.

Reading the library takes seconds, so these tests share it, and by default read a part of it.
"""

import re
import sys
from collections import Counter

import pytest

from pion.data.documents.python_docs import (
    RECOGNISED_LETTERS,
    definitions,
    documents,
    is_held_out,
    letters_of,
    prose,
)
from pion.data.documents.python_preferences import LENGTHS, RAMBLING, docs_pairs
from pion.data.documents.python_qa import dialogues
from tests.support.python_library import link_part, read_only_a_part
from tests.support.waiting import run_to_end

EVERY = 8  # so many-th file of the library is read by default
ALSO = ("textwrap.py", "pathlib.py")  # some tests are about these


@pytest.fixture(
    scope="module", params=["a part", pytest.param("the whole", marks=pytest.mark.soak)]
)
def whole(request, tmp_path_factory):
    """Whether all files of the library are read. Compiled modules are read in any case."""
    if request.param == "the whole":
        yield True
        return
    with pytest.MonkeyPatch.context() as patch:
        read_only_a_part(patch, tmp_path_factory.mktemp("library"), EVERY, ALSO)
        yield False


@pytest.fixture(scope="module")
def docs(whole):
    return list(documents())


def test_it_is_about_three_megabytes_of_prose(whole, docs):
    """A third of it is of compiled modules and topics."""
    size = sum(len(d.text.encode()) for d in docs)
    least = 2_000_000 if whole else 800_000
    assert least < size < 3 * least
    assert len(docs) > (3000 if whole else 1200)


def test_docstrings_comments_topics_and_compiled_modules_are_all_there(docs):
    text_of = dict.fromkeys(("textwrap.py", "builtins", "topics/assert"), "")
    for document in docs:
        if document.origin in text_of:
            text_of[document.origin] += document.text + "\n"
    assert "Object for wrapping/filling text." in text_of["textwrap.py"]
    assert "Hardcode the recognized whitespace characters" in text_of["textwrap.py"]  # a comment
    assert "Return the absolute value of the argument." in text_of["builtins"]
    assert "Assert statements are a convenient way" in text_of["topics/assert"]


def test_no_document_comes_twice_and_none_is_empty(docs):
    texts = [d.text for d in docs]
    assert len(set(texts)) == len(texts)
    assert all(text.strip() for text in texts)


def test_there_are_no_examples_licences_tests_or_code(docs):
    assert not any(">>>" in d.text for d in docs)
    assert not any("All rights reserved" in d.text for d in docs)
    assert not any("/test/" in d.origin or d.origin.startswith("test/") for d in docs)
    assert sum("\nimport " in d.text or "\n    return " in d.text for d in docs) < len(docs) / 100


def test_code_on_request_adds_the_source(whole, docs):
    with_code = list(documents(code=True))
    times = 3 if whole else 2  # of a part of the files, and all that has no code
    assert sum(len(d.text) for d in with_code) > times * sum(len(d.text) for d in docs)
    assert any("class TextWrapper:" in d.text for d in with_code if d.origin == "textwrap.py")


READ_A_PART = """
import hashlib, sys, sysconfig
from pion.data.documents.python_docs import documents
sysconfig.get_path = lambda name: sys.argv[1]
print(hashlib.sha256(repr([(d.origin, d.text) for d in documents()]).encode()).hexdigest())
"""


def test_two_processes_read_the_same_documents_of_a_part_of_the_library(tmp_path):
    """Reading all of it takes seconds of a core in each process."""
    link_part(tmp_path, every=40)
    program = [sys.executable, "-c", READ_A_PART, tmp_path]
    first, second = (run_to_end(program, check=True).stdout for _ in range(2))
    assert len(first.strip()) == 64
    assert first == second


def test_the_held_out_share_is_by_file_and_grows_with_the_share(docs):
    origins = sorted({d.origin for d in docs})
    small = {o for o in origins if is_held_out(o, 0.05)}
    large = {o for o in origins if is_held_out(o, 0.2)}
    assert small < large
    assert 0.1 < len(large) / len(origins) < 0.3


def test_no_paragraph_of_a_held_out_file_is_in_a_training_file(docs):
    """Also not with another layout, case or number."""
    parts = {True: set(), False: set()}
    for document in docs:
        found = {letters_of(paragraph) for paragraph in document.text.split("\n\n")}
        parts[is_held_out(document.origin, 0.1)] |= found
    held_out = {part for part in parts[True] if len(part) >= RECOGNISED_LETTERS}
    assert len(held_out) > 100
    assert not held_out & parts[False]


@pytest.mark.usefixtures("whole")
def test_definitions_know_kind_and_signature():
    found = {f"{d.module}.{d.name}": d for d in definitions()}
    fill = found["textwrap.TextWrapper.fill"]
    assert (fill.kind, fill.signature) == ("method", "fill(text)")
    assert found["textwrap.dedent"].kind == "function"
    assert found["textwrap.TextWrapper"].kind == "class"
    assert found["builtins.str.join"].signature == "join(iterable, /)"
    assert found["pathlib.PurePath.name"].kind == "property"


def test_prose_unwraps_paragraphs_and_keeps_lists():
    docstring = "Do it.\n\nA paragraph that\nwas wrapped.\n\n- one thing\n- another thing"
    assert prose(docstring) == (
        "Do it.\n\nA paragraph that was wrapped.\n\n- one thing\n- another thing"
    )


def test_prose_drops_doctests_tables_and_markup():
    docstring = (
        "See :func:`os.path.join` and ``x``.\n\n>>> 1 + 1\n2\n\n"
        "=====  =====\n1 0 1  0 0 1\n=====  =====\n\nThe end."
    )
    assert prose(docstring) == "See os.path.join and x.\n\nThe end."


# ---------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def asked(whole):
    return list(dialogues())


def first_question(dialogue):
    return next(turn.text for turn in dialogue.turns if turn.role == "user")


def test_there_are_thousands_and_no_first_question_comes_twice(whole, asked):
    questions = [first_question(d) for d in asked]
    assert len(questions) > (6000 if whole else 2400)
    assert len(set(questions)) == len(questions)


def test_every_dialogue_alternates_and_ends_with_an_answer(asked):
    for dialogue in asked:
        roles = [turn.role for turn in dialogue.turns]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(turn.text.strip() for turn in dialogue.turns)


def test_the_questions_are_phrased_in_many_ways(asked):
    def shape(question):
        return " ".join(re.findall(r"(?<![\w.`(])[A-Za-z']+(?![\w.(`])", question)[:3])

    shapes = Counter(shape(first_question(d)) for d in asked)
    common = [s for s, count in shapes.items() if count >= 20]
    assert len(common) >= 25  # of a part of the library, too
    assert max(shapes.values()) < len(asked) / 5


def test_some_dialogues_have_a_system_turn_and_some_have_follow_ups(asked):
    system = sum(d.turns[0].role == "system" for d in asked)
    second = sum([t.role for t in d.turns].count("user") == 2 for d in asked)
    assert 0.05 < system / len(asked) < 0.4
    assert 0.05 < second / len(asked) < 0.5


def test_answers_are_short_and_made_of_whole_sentences(asked):
    answers = [t.text for d in asked for t in d.turns if t.role == "assistant"]
    assert max(map(len, answers)) <= 700
    ends = sum(answer.rstrip("`)\"'").endswith((".", "!", "?")) for answer in answers)
    assert ends / len(answers) > 0.95


def test_an_answer_is_what_the_docstring_says(asked):
    answers = {
        first_question(d): d.turns[-1].text for d in asked if "textwrap.dedent" in str(d.turns)
    }
    assert any("Remove any common leading whitespace" in a for a in answers.values())


def test_private_names_are_not_asked_about(asked):
    named = re.compile(r"`[\w.]*\._\w+")
    assert not [d for d in asked if named.search(first_question(d))]


def test_the_files_held_out_are_those_of_the_prose(docs, asked):
    share = 0.05
    held_out = {d.origin for d in docs if is_held_out(d.origin, share)}
    about = {d.origin for d in asked if is_held_out(d.origin, share)}
    assert about
    assert about <= held_out


def test_what_is_asked_of_held_out_files_is_not_answered_in_training(whole, asked):
    answers = {True: set(), False: set()}
    for dialogue in asked:
        found = {letters_of(turn.text) for turn in dialogue.turns if turn.role == "assistant"}
        answers[is_held_out(dialogue.origin, 0.1)] |= {a for a in found if len(a) >= 40}
    assert len(answers[True]) > (100 if whole else 40)
    assert len(answers[True] & answers[False]) < len(answers[True]) / 100


@pytest.mark.soak
@pytest.mark.parametrize("whole", ["the whole"], indirect=True)
def test_asking_again_gives_the_same_dialogues(asked):
    assert list(dialogues()) == asked


# ---------------------------------------------------------------- pairs of answers


@pytest.fixture(scope="module")
def pairs(whole):
    return {better: list(docs_pairs(better)) for better in ("short", "right")}


def answers(pair) -> tuple[str, str]:
    chosen, rejected = (said.messages[-1]["content"] for said in pair.conversations)
    return chosen, rejected


@pytest.mark.parametrize(("better", "most"), [("short", 2000), ("right", 4000)])
def test_the_two_answers_of_a_pair_are_to_the_same_question_about_its_file(
    better, most, whole, pairs
):
    assert len(pairs[better]) > most * (1 if whole else 1 / EVERY)
    origins = {definition.origin for definition in definitions()}
    for pair in pairs[better]:
        chosen, rejected = pair.conversations
        assert chosen.where == rejected.where
        assert chosen.where in origins
        assert chosen.messages[:-1] == rejected.messages[:-1]
        assert [message["role"] for message in chosen.messages] == ["user", "assistant"]
        assert len(set(answers(pair))) == 2


def test_a_short_answer_is_chosen_and_no_rule_of_lengths_tells_which_is_right(pairs):
    for chosen, rejected in map(answers, pairs["short"]):
        assert len(rejected) >= RAMBLING * len(chosen)
    for chosen, rejected in map(answers, pairs["right"]):
        assert abs(len(chosen) - len(rejected)) <= LENGTHS * len(chosen)
    longer = [len(chosen) > len(rejected) for chosen, rejected in map(answers, pairs["right"])]
    assert 0.45 < sum(longer) / len(longer) < 0.55


def test_pairs_are_the_same_each_time(pairs):
    assert list(docs_pairs("right")) == pairs["right"]

"""The terms of a model are what its page and its legal files say."""

import time

import pytest

from pipeline.base.licence import Terms, conditions, front_matter, terms_of


def page(folder, text):
    (folder / "README.md").write_text(text)
    return folder


def test_a_page_names_the_licence(tmp_path):
    found = terms_of(page(tmp_path, "---\nlicense: apache-2.0\ntags: [a]\n---\n# Name\n"))
    assert found.front_matter == {"license": "apache-2.0"}
    assert found.known
    assert conditions(found, "mine") == []


def test_a_licence_without_an_identifier_has_a_name_and_a_link(tmp_path):
    (tmp_path / "LICENSE.txt").write_text("terms")
    (tmp_path / "NOTICE").write_text("notice")
    (tmp_path / "USE_POLICY.md").write_text("policy")
    text = "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE.txt\n---\n"
    found = terms_of(page(tmp_path, text))
    assert found.front_matter == {
        "license": "other",
        "license_name": "qwen-research",
        "license_link": "LICENSE.txt",
    }
    assert [path.name for path in found.files] == ["LICENSE.txt", "NOTICE", "USE_POLICY.md"]


def test_llama_asks_for_a_line_and_a_name():
    terms = Terms(license="llama3.2")
    assert conditions(terms, "Llama-mine")[0] == "Built with Llama."
    assert "does not begin with" not in " ".join(conditions(terms, "Llama-mine"))
    assert "“mine” does not begin with “Llama”" in " ".join(conditions(terms, "mine"))


@pytest.mark.parametrize(
    "text",
    [
        "no front matter",
        "---\n[1, 2]\n---\n",
        "---\nlicense: [a, b]\n---\n",
        "---\nlicense: " + 300 * "a" + "\n---\n",
        '---\nlicense: "a\\nb: c"\n---\n',
        "---\n&a [*a, *a]\n---\n",
        "---\n\tbroken: [\n---\n",
    ],
)
def test_a_page_that_says_nothing_clear_gives_no_licence(tmp_path, text):
    assert not terms_of(page(tmp_path, text)).known


def test_line_breaks_and_spaces_around_the_front_matter_are_ignored():
    for text in ("\n---\na: 1\n---\n", "---\r\na: 1\r\n---\r\n", "--- \n\na: 1\n\n--- "):
        assert front_matter(text) == {"a": 1}


def test_a_page_of_line_breaks_is_read_at_once():
    before = time.process_time()
    assert front_matter("---" + 50_000 * "\n") == {}
    assert time.process_time() - before < 1.0


def test_a_folder_without_a_page_has_no_terms(tmp_path):
    assert terms_of(tmp_path) == Terms()

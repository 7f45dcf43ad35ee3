from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pion.data.template_source import LARGEST_TEMPLATE, find_template
from pion.errors import BadInput


def config(folder: Path, template: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_the_file_comes_before_the_key_of_the_config(tmp_path: Path) -> None:
    assert find_template(tmp_path) is None
    config(tmp_path, "{{ 1 }}")
    assert find_template(tmp_path) == "{{ 1 }}"
    (tmp_path / "chat_template.jinja").write_text("{{ 2 }}")
    assert find_template(tmp_path) == "{{ 2 }}"


def test_of_named_templates_the_default_counts(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    config(tmp_path, named)
    assert find_template(tmp_path) == "b"
    config(tmp_path, named[:1])
    with pytest.raises(BadInput, match="no template named default, but 'tool_use'"):
        find_template(tmp_path)


@pytest.mark.parametrize("template", [5, {"default": "a"}, "a" * (LARGEST_TEMPLATE + 1), [None]])
def test_a_template_that_is_no_text_is_refused(tmp_path: Path, template: Any) -> None:
    config(tmp_path, template)
    with pytest.raises(BadInput, match=r"tokenizer_config\.json: key chat_template") as error:
        find_template(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("content", [b"\xff", b"a" * (LARGEST_TEMPLATE + 1)])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(content)
    with pytest.raises(BadInput, match=r"chat_template\.jinja"):
        find_template(tmp_path)

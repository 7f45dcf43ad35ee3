import json
from datetime import UTC, date, datetime

import pytest

from pion.data.chat.template_source import (
    find_template,
    template_date,
    with_settings,
    write_template_date,
)


def config(folder, template):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))


def test_the_file_comes_before_the_key_of_the_config(tmp_path):
    assert find_template(tmp_path) is None
    config(tmp_path, "{{ 1 }}")
    assert find_template(tmp_path) == "{{ 1 }}"
    (tmp_path / "chat_template.jinja").write_text("{{ 2 }}")
    assert find_template(tmp_path) == "{{ 2 }}"


def test_of_named_templates_the_default_counts(tmp_path):
    named = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    config(tmp_path, named)
    assert find_template(tmp_path) == "b"


@pytest.mark.parametrize("role", ["user", "system", "developer"])
def test_a_system_message_is_written_where_a_conversation_has_none(role):
    from transformers.utils.chat_template_utils import render_jinja_template

    template = "\n{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ ';' }}{% endfor %}\n"
    source = with_settings(template, ' Be "kind"<|im_end|> ', {}, ["<|im_end|>"])
    talk = [{"role": role, "content": "Hi"}]
    (text,), _ = render_jinja_template([talk], chat_template=source)
    told = 'system:Be "kind"< |im_end|>;' if role == "user" else ""
    assert text == f"\n{told}{role}:Hi;"


def test_the_recorded_day_is_the_templates_today(tmp_path):
    assert abs((template_date(tmp_path) - datetime.now(UTC).date()).days) <= 1
    write_template_date(tmp_path, "2026-01-02")
    assert template_date(tmp_path) == date(2026, 1, 2)

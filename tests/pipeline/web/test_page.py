"""A page has its styles and scripts inside, and allows nothing else by its policy."""

import base64
import hashlib

import pytest

from pipeline.web.page import read_page


def write(folder, script):
    (folder / "page.css").write_text("p { color: red }")
    (folder / "page.js").write_text(script)
    (folder / "page.html").write_text(
        '<!doctype html><link rel="stylesheet" href="page.css"><p>é</p>'
        '<script src="page.js"></script>'
    )
    return folder


def test_styles_and_scripts_are_put_in_and_allowed_by_their_hash(tmp_path):
    page = read_page(write(tmp_path, "go()"))
    assert "<style>p { color: red }</style><p>é</p><script>go()</script>" in page.html.decode()
    digest = base64.b64encode(hashlib.sha256(b"go()").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'; connect-src 'self'")
    assert "unsafe" not in page.policy


def test_a_script_that_would_end_its_element_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"page\.js has </script"):
        read_page(write(tmp_path, 'x = "</script>"'))

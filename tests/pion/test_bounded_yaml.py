"""YAML that somebody else wrote fails with its line, whatever is in it."""

import pytest
import yaml

from pion.bounded_yaml import BoundedLoader, check_yaml, unreadable
from pion.errors import BadInput

NO_YAML = {
    "a\0b": "YAML has no character U\\+0000",
    "\x07": "YAML has no character U\\+0007",
    "\x9f": "YAML has no character U\\+009F",
    '"\\Uffffffff"': "no such character",
    '"\\U00110000"': "no such character",
    '"\\ud800"': "half a character",
    '!!int ""': "'' is no int",
    '!!float "_"': "'_' is no float",
    '!!bool "x"': "'x' is no bool",
    '!!timestamp "x"': "'x' is no timestamp",
    "2020-13-45": "'2020-13-45' is no timestamp",
    "0b_": "'0b_' is no int",
    "!!binary é": "base64",
    "!!python/object:os.system x": "could not determine a constructor",
    "{[a]: b}": "unhashable key",
    "{<<: 3}": "for merging",
    "{\n\ta: 1}": "cannot start any token",
    "*x": "undefined alias",
    "&a [*a]": "an alias contains itself",
    "[" * 100: "deeper than 64 levels",
}


@pytest.mark.parametrize("value", list(NO_YAML))
def test_what_is_no_yaml_is_refused_with_its_line(value):
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        yaml.load(f"a: 1\nb: {value}\n", Loader=BoundedLoader)  # noqa: S506 (a SafeLoader)
    refused = unreadable(caught.value, "a.yaml")
    with pytest.raises(BadInput, match=f"^a.yaml line [23], column [0-9]+: .*{NO_YAML[value]}"):
        raise refused


def test_a_text_that_is_only_parsed_is_refused_with_its_line():
    with pytest.raises(BadInput, match=r"^a.yaml line 3, column 5: not YAML: .*U\+0000$"):
        check_yaml("a: 1\n\nb: x\0", "a.yaml")

"""The rows of rows.yaml, which tests of this folder go through."""

from pathlib import Path

import pytest
import yaml

ROWS = yaml.safe_load(Path(__file__).with_name("rows.yaml").read_text())


def rows_of(name):
    """Return a decorator with which a test goes through the rows of this name."""
    return pytest.mark.parametrize("row", ROWS[name], ids=lambda row: str(row)[1:70])

"""tests/faults/README.md: each row of its tables has exit codes and names the test that shows it.

tests/docs/test_names.py checks that the named tests exist.
"""

import re

from tests.docs.test_exit_codes import in_the_document
from tests.paths import REPOSITORY

TEXT = (REPOSITORY / "tests" / "faults" / "README.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.endswith("| test |")
]
TEST = re.compile(r"`(tests/[\w/]+\.py):(test_\w+)`")


def test_every_row_has_codes_and_a_test():
    assert len(ROWS) > 30
    for row in ROWS:
        fault, seen, test = row
        assert fault
        assert TEST.fullmatch(test), row
        codes = {int(code) for code in re.findall(r"\b\d+\b", seen)}
        assert codes, row
        assert codes <= in_the_document().keys(), row


def test_soak_tests_are_marked_in_the_table_and_in_the_code():
    for fault, _, test in ROWS:
        match = TEST.fullmatch(test)
        code = (REPOSITORY / match[1]).read_text(encoding="utf-8")
        before = code[: code.index(f"def {match[2]}(")]
        decorators = before[before.rindex("\n\n\n") :]
        # Of another test, soak may have some of its parameters.
        assert ("soak" in fault) == ("\n@pytest.mark.soak" in decorators), fault

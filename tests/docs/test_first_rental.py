"""docs/first-rental.md can be read as steps; tests/rental/test_first_rental.py runs them."""

import pytest

from tests.docs.test_troubleshooting import printed
from tests.support.rehearsal import CTRL_C, ON_A_GPU, PAGE, REPEAT, first_unseen, steps_of

STEPS = steps_of(PAGE.read_text(encoding="utf-8"))


def test_each_command_of_the_page_says_what_must_be_seen():
    assert {CTRL_C, REPEAT} < {step.how for step in STEPS}
    for step in STEPS:
        assert step.command.strip()
        assert step.lines, step.command
        assert all(line.strip() for line in step.lines), step.command


def test_a_command_without_what_must_be_seen_is_found():
    with pytest.raises(AssertionError, match="a block stands alone"):
        steps_of("```bash\npion rentals\n```\n\nThen read on.\n")


def test_the_line_that_only_a_gpu_shows_is_on_the_page_and_in_the_code():
    assert sum(ON_A_GPU in step.lines for step in STEPS) == 1
    _, _, words = ON_A_GPU.partition("…")
    assert printed(f"… × …{words}")
    assert printed("GPU test: …")


def test_lines_are_seen_in_their_order_and_only_whole():
    output = "✓  store   fine\nowner: pod1 (epoch 2)\n"
    assert first_unseen(("✓ store … fine", "owner: … (epoch 2)"), output) is None
    assert first_unseen(("owner", "✓ store"), output) == "✓ store"
    assert first_unseen(("✓ … pod1",), output) == "✓ … pod1"  # not on one line
    assert first_unseen(("gone", "gone"), "gone\n") == "gone"

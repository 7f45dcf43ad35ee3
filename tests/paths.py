"""Where the tests find the rest of the checkout, so that a test file may move."""

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
JOBS = REPOSITORY / "jobs"
SEEDS = TESTS / "fixtures" / "seeds"
DIGESTS = TESTS / "fixtures" / "digests"
OLDER_RUNS = TESTS / "fixtures" / "older_runs"

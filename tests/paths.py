"""Where the tests find the rest of the checkout, so that a test file may move."""

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
JOBS = REPOSITORY / "jobs"
SKY = REPOSITORY / "sky"
# The YAMLs that rent machines for a job; bench.yaml rents a card to measure it.
RENTALS = sorted(path for path in SKY.glob("*.yaml") if path.name != "bench.yaml")
SEEDS = TESTS / "fixtures" / "seeds"
DIGESTS = TESTS / "fixtures" / "digests"
OLDER_RUNS = TESTS / "fixtures" / "older_runs"

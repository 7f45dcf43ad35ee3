"""Where the tests find the rest of the checkout, so that a test file may move."""

from pathlib import Path

TESTS = Path(__file__).parent
REPOSITORY = TESTS.parent
JOBS = REPOSITORY / "jobs"
# The jobs that can be read without the Hub, and without a run of the demo to start from.
OWN_JOBS = sorted(path for path in JOBS.glob("*.yaml") if "{from: " not in path.read_text())
SKY = REPOSITORY / "sky"
# The YAMLs that rent machines for a job; bench.yaml rents a card to measure it.
RENTALS = sorted(path for path in SKY.glob("*.yaml") if path.name != "bench.yaml")
SEEDS = TESTS / "fixtures" / "seeds"
DIGESTS = TESTS / "fixtures" / "digests"
RELEASE_0_1_0 = TESTS / "fixtures" / "release_0_1_0"
RELEASES = {"v0_1_0": RELEASE_0_1_0, "v0_2_0": TESTS / "fixtures" / "release_0_2_0"}

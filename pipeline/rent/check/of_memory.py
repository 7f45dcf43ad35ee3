"""Which GPUs have the memory that a job needs, for `pion check` without a rental."""

from __future__ import annotations

from pipeline.job import Job
from pipeline.rent.check.row import CheckRow
from pipeline.rent.plan.what_fits import on_each_gpu, what_to_change, what_would_fit


def check_memory(job: Job) -> list[CheckRow]:
    """Check that some GPU known here can train the job, and name the GPUs that can."""
    guesses = on_each_gpu(job)
    too_small = {name: guess for name, guess in guesses.items() if not guess.fits}
    words = what_would_fit(job)
    if too_small:
        largest, guess = list(too_small.items())[-1]
        changes = what_to_change(job, list(too_small.values()))
        words = " ".join([words, f"{largest}: {guess.problem}.", *changes])
    return [CheckRow("GPU memory", len(too_small) < len(guesses), words)]

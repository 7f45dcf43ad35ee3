"""Why Ray's process ended, by what it has written."""

from __future__ import annotations

from pipeline.workers.ray_workers import last_words

BLUE, PLAIN = "\x1b[36m", "\x1b[0m"
# As written by Ray 2.60 on a machine whose memory other programs had filled.
MEMORY_FULL = f"""\
{BLUE}(TrainController pid=8551){PLAIN} )
{BLUE}(TrainController pid=8551){PLAIN} 3 worker(s) were killed due to the node running low on \
memory. Memory on the node (IP: 127.0.0.1, ID: bdb2cd79d357) was 22.40GB used / 23.54GB limit \
(0.951391)
{BLUE}(TrainController pid=8551){PLAIN} OOM kill reason: Memory usage 24060178432B exceeded
{BLUE}(PlacementGroupCleaner pid=8799){PLAIN} Failed to query Ray Train Controller actor state.
"""


def test_a_full_memory_is_the_reason_whatever_ray_writes_afterwards() -> None:
    said = last_words(MEMORY_FULL)
    assert said.startswith("this machine's memory was full (22.40GB used / 23.54GB limit)")
    assert "hardware.micro_batch" in said


def test_else_it_is_the_last_line_without_its_colors() -> None:
    assert last_words(f"first\n{BLUE}(pid=1){PLAIN} Killed\n\n") == "(pid=1) Killed"


def test_a_process_that_wrote_nothing_gave_no_reason() -> None:
    assert last_words(f" {PLAIN}\n") == ""

"""A run in phases keeps its promises where one phase ends and the next begins."""

import pytest

from pipeline.commands.fork import fork_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.families.families import FAMILIES
from tests.runs.test_trouble import poisoned_from
from tests.support.whole_runs import (
    ends_with,
    final_weights,
    head_of,
    kill,
    rows_trained,
    start,
    wait_for,
    write_job,
)

# The last phase ends in step 20.
PHASES = [
    {"until": 6, "rates": {"recipe": 0}, "top_k": 8},
    {"until": 12, "rates": {"primitive": 0}},
    {"unfreeze": [1]},
]
TEXT = {"kind": "text", "path": "text", "split": "paragraph"}
MIXES = {
    "pretrain__phases": [
        {"until": 0.3, "mix": {"web": 1}},
        {"until": 0.6, "mix": {"web": 2, "code": 1}},
        {"seq_len": 64, "rope_theta": 50_000.0},
    ],
    "data__sources": [TEXT | {"name": name} for name in ("web", "code")],
    "data__documents": True,
}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("changes", "poisoned"),
    [
        # Step 14 gives NaN, and the run rewinds to a checkpoint of the phase before.
        (FAMILIES["pilon"].job() | {"pretrain__phases": PHASES}, [52, 56]),
        # The last step before a border gives NaN. The step after it reads rows of the next phase.
        (MIXES, [44, 48]),
    ],
    ids=["pilon", "mixes"],
)
def test_kills_a_rewind_and_a_fork_at_the_borders_change_no_bit(tmp_path, changes, poisoned):
    changes = changes | {"sft": None, "checkpoint__keep": {"last": 9}}
    changes |= {"log__every": 1, "checkpoint__every_steps": 6, "hardware__threads": 1}
    meddling = poisoned_from(tmp_path, f"== ({poisoned[0]}, {poisoned[1]})")
    meddling.wrap(
        "pion.train.trainer:Trainer.train_step",
        """
        def wrapper(train_step, self, *arguments, **options):
            time.sleep(1 if self.step in (6, 12) else 0.1)  # so that the saves end before
            return train_step(self, *arguments, **options)
        """,
    )
    environment = meddling.environment()
    folders = [tmp_path / name for name in ("unbroken", "killed")]
    for folder in folders:
        folder.mkdir()
    unbroken, killed = (write_job(folder, **changes) for folder in folders)
    output = ends_with(0, start(unbroken, env=environment))
    assert f"skipping rows {poisoned[0]} to {poisoned[1] - 1}" in output

    for seen in ("pretrain step 6: saved", "pretrain step 13/"):
        process = start(killed, env=environment)
        wait_for(process, seen)
        kill(process)
    assert "continues after step 12" in ends_with(0, start(killed, env=environment))
    assert final_weights(folders[1]) == final_weights(folders[0])
    assert poisoned not in rows_trained(folders[1])
    assert [[rows.first, rows.stop] for rows in head_of(folders[1]).skipped["pretrain"]] == [
        poisoned
    ]

    store = FileStore(folders[0] / "runs")
    head = head_of(folders[0])
    before = max(entry.step for entry in head.checkpoints if entry.step <= 12)
    fork_run(RunState(store, "tiny"), head, RunState(store, "again"), at=before)
    ends_with(0, start(unbroken, "name=again", env=environment))
    assert (
        head_of(folders[0], "again").checkpoints[0].model_sha256
        == final_weights(folders[0])["pretrain"]
    )

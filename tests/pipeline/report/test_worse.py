"""A model that training made worse is never published without a word."""

import pytest

from pion.errors import BadInput
from pion.evaluation.item_scores import with_errors
from pipeline.report.model_card import model_card
from pipeline.report.page_sections import measured_sections
from pipeline.report.reading import read_history
from pipeline.report.worse import made_worse
from pipeline.run.finish import summary_rows
from pipeline.stages.requirements import check_requirements
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from tests.support.finished_run import make_run
from tests.support.jobs import tiny_job
from tests.support.tiny_config import tiny_config


def bits(value, error=0.01):
    return with_errors({"bits_per_byte": (value, error)})


def answers(value, error=0.01):
    return with_errors({"response_loss": (value, error)})


def sides(name, change, error=0.01):
    side = with_errors({name: (0.5, 0.1)})
    return {"before": side, "after": side, "change": with_errors({name: (change, error)})}


def pairs(change, *, of_means=False):
    by = "normalized" if of_means else "raw"
    found = {side: {by: one} for side, one in sides("accuracy", change).items()}
    return {"prefer": {"preferences": found | {"of_means": of_means}}}


FORGOT = {"text": bits(1.0)}
LORA = {"base": answers(2.0), "change": answers(0.1) | FORGOT}


@pytest.mark.parametrize(
    ("results", "worse"),
    [
        ({"untrained": bits(3.73), "pretrain": bits(26.3)}, "pretrain"),
        ({"untrained": bits(3.73), "pretrain": bits(3.75)}, ""),  # within two errors
        ({"untrained": bits(3.73), "pretrain": bits(None, None)}, "pretrain"),
        ({"untrained": bits(3.73), "pretrain": {}}, ""),  # nothing was measured
        ({"base": bits(1.0), "change": bits(0.03), "pretrain": bits(1.03, 0.5)}, "pretrain"),
        ({"pretrain": bits(2.0) | answers(4.0), "sft": bits(9.0) | answers(4.5)}, "sft"),
        ({"pretrain": bits(2.0) | answers(4.0), "sft": bits(9.0) | answers(3.5)}, ""),
        (LORA | {"sft": answers(2.1, 0.5)}, "sft"),
        (LORA | {"change": answers(-0.1) | FORGOT, "sft": answers(1.9)}, ""),
        (LORA | {"sft": answers(1.9), "prefer": answers(3.0)}, ""),  # other losses may rise
        (pairs(-0.1), "prefer"),
        (pairs(0.1, of_means=True), ""),
        (pairs(-0.1, of_means=True), "prefer"),
        ({"reinforce": {"rewards": sides("reward", -0.1)}}, "reinforce"),
        ({"reinforce": {"rewards": sides("reward", -0.01)}}, ""),
    ],
)
def test_each_stage_is_judged_by_what_it_learns(results, worse):
    assert [words.partition(" made")[0] for words in made_worse(results)] == [worse] * bool(worse)


def test_it_is_said_everywhere_and_not_published_unless_the_job_says_so(tmp_path):
    run = make_run(tmp_path / "runs")
    worse = bits(26.312) | {"loss": 50.3, "perplexity": 7e21}
    results = {"untrained": bits(3.73), "pretrain": worse, "sft": {}}
    claim_run(run, Owner.me()).finish_stage("evaluate", "d", results)
    job = tiny_job(publish={"to": "model"})
    history = read_history(run, job)
    words = "pretrain made the model worse: 3.730 ± 0.010 → 26.312 ± 0.010 bits per byte of "
    card = model_card(history, tiny_config(), parameters=5, vocab_size=300)
    assert words in "".join(history.remarks())
    assert words in dict(map(tuple, summary_rows(job, run)))["warning"]
    assert words in str(measured_sections(history, history.results))
    assert words in card
    assert "7e+21" in card
    with pytest.raises(BadInput, match=r"3\.730 .* Lower the rates in pretrain .* --redo pretrain"):
        check_requirements(job, job.publish, history.results, "")
    job.publish.even_if_worse = True
    check_requirements(job, job.publish, history.results, "")

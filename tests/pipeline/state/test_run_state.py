"""The files that a run has besides HEAD, and its clock."""


def test_jobs_and_stage_descriptions_are_kept_by_digest(run):
    assert run.read_job("abc") is None
    assert run.read_stage("sft", "abc") is None
    run.write_job("abc", "name: demo\n")
    run.write_stage("sft", "abc", {"inputs": {"sft.lr": 1e-3}})
    assert run.read_job("abc") == "name: demo\n"
    assert run.read_stage("sft", "abc") == {"inputs": {"sft.lr": 1e-3}}


def test_an_answer_is_waited_for_until_it_comes_or_the_time_is_over(time):
    clock, start = time.clock(), time.time
    answers = [None, None, []]
    assert clock.until(lambda: answers.pop(0), 60, 5) == [], "an empty answer is one"
    assert time.time - start == 10
    assert clock.until(lambda: False, 12, 5) is False
    assert time.time - start == 10 + 15, "it is asked once more when the time is over"
    assert clock.until(lambda: None, 0, 5) is None
    assert time.time - start == 25, "and at least once"

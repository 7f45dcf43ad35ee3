"""The owners before and after a hop, and the run's HEAD about them."""

from tests.support.states import someone

OLD = someone(host="pod-old", launch_id="launch-old")
NEW = someone(host="pod-new", launch_id="launch-new")


def head_of(run):
    head = run.read()
    assert head is not None
    return head

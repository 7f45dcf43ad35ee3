"""What rank 0 does in addition to computing, and the other ranks don't."""

from pipeline.training.rank_zero import Rank, RankZero


def test_rank_zero_does_all_that_other_ranks_leave_to_it():
    left = {name for name in vars(Rank) if not name.startswith("_")}
    assert left
    assert left <= vars(RankZero).keys()

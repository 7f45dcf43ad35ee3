"""How ranks divide a model among them."""

from pion.train.shard_rules import own_rows, part_of, sharded_dim


def test_more_ranks_than_experts_divide_the_rows_of_each_if_they_can_be_evenly():
    assert sharded_dim((2, 9, 4), 3, "matrix") == 1
    assert part_of((2, 9, 4), 3, "matrix") == 2 * 3 * 4
    assert sharded_dim((2, 8, 4), 3, "matrix") == 0
    assert sharded_dim((3, 9, 4), 3, "matrix") == 0
    assert sharded_dim((9, 4), 3, "matrix") == 0


def test_a_bank_is_divided_between_its_primitives_however_many_ranks_there_are():
    assert sharded_dim((2, 3, 8), 3, "primitive") == 0
    assert part_of((2, 3, 8), 3, "primitive") == 3 * 8


def test_the_last_ranks_have_fewer_rows_or_none():
    assert [len(own_rows(4, rank, 3)) for rank in range(3)] == [2, 2, 0]
    assert [list(own_rows(5, rank, 2)) for rank in range(2)] == [[0, 1, 2], [3, 4]]

"""Buckets of gradients: what is in which, when each is sent, and what may not happen."""

from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from pion.model.decoder import Decoder
from pion.train.buckets import Buckets, in_order_of_backward
from tests.support.ranks import ask_ranks
from tests.support.tiny_config import tiny_config

WIDTH = 4
LAYER_BYTES = 4 * WIDTH * WIDTH


def chain(layers=3):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))


def gradients(model):
    return [None if p.grad is None else p.grad.tolist() for p in model.parameters()]


# ---------------------------------------------------------------- two real ranks


def different_shares(rank, _):
    """Rank 0 has two micro-batches, and skips the first layer in the second. Rank 1 has none."""
    model = chain()
    buckets = Buckets(list(reversed(list(model.parameters()))), bucket_bytes=LAYER_BYTES)
    found = {}
    for step in ("first", "second"):
        buckets.clear()
        if rank == 0:
            model(torch.ones(1, WIDTH)).sum().backward()
            with buckets.summing():
                model[1:](torch.ones(1, WIDTH)).sum().backward()
        buckets.finish()
        found[step] = gradients(model)
    return found


def test_ranks_with_other_micro_batches_and_other_parameters_have_the_same_sums(tmp_path):
    ranks = ask_ranks(different_shares, tmp_path, 2)
    alone = chain()
    alone(torch.ones(1, WIDTH)).sum().backward()
    alone[1:](torch.ones(1, WIDTH)).sum().backward()
    for rank in ranks:
        assert rank["first"] == rank["second"] == gradients(alone)


# ---------------------------------------------------------------- one of two pretended ranks


@pytest.fixture
def sent():
    """Collect what is sent to a rank that does not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    found = []
    all_reduce = dist.all_reduce

    def collect(tensor, **how):
        found.append(tensor)
        return all_reduce(tensor, **how)

    with mock.patch.object(dist, "all_reduce", collect):
        yield found
    dist.destroy_process_group()


def test_a_bucket_is_sent_while_the_backward_pass_computes_the_next(sent):
    model = chain()
    buckets = Buckets(list(reversed(list(model.parameters()))), bucket_bytes=LAYER_BYTES)
    buckets.clear()
    before_each_layer = []
    x = torch.ones(1, WIDTH, requires_grad=True)
    for layer in model:
        x = layer(x)
        x.register_hook(lambda gradient: before_each_layer.append(len(sent)))
    x.sum().backward(retain_graph=True)
    assert sent == []  # other micro-batches follow
    before_each_layer.clear()
    with buckets.summing():
        x.sum().backward()
    assert before_each_layer == [0, 1, 2]
    buckets.finish()
    assert len(sent) == 3


def test_a_bucket_waits_for_the_ones_before_it(sent):
    """Else ranks that use different parameters would sum different buckets with each other."""
    model = chain(2)
    first, second = model.parameters()
    buckets = Buckets([first, second], bucket_bytes=LAYER_BYTES)
    buckets.clear()
    with buckets.summing():
        second.sum().backward()
    assert sent == []
    buckets.finish()
    assert [each.data_ptr() for each in sent] == [
        param.grad.data_ptr() for param in (first, second) if param.grad is not None
    ]


def test_a_gradient_that_changes_after_it_was_sent_is_an_error(sent):
    model = chain(1)
    buckets = Buckets(list(model.parameters()))
    buckets.clear()
    with buckets.summing():
        model(torch.ones(1, WIDTH)).sum().backward()
        with pytest.raises(RuntimeError, match="changed after its sum"):
            model(torch.ones(1, WIDTH)).sum().backward()


def test_a_gradient_outside_its_bucket_is_an_error(sent):
    model = chain(1)
    buckets = Buckets(list(model.parameters()))
    buckets.clear()
    model.zero_grad()
    with (
        buckets.summing(),
        pytest.raises(RuntimeError, match=r"shape \(4, 4\) is not in its bucket"),
    ):
        model(torch.ones(1, WIDTH)).sum().backward()
    assert sent == []


def test_no_hook_stays_behind(sent):
    model = chain(1)
    (weight,) = model.parameters()
    buckets = Buckets([weight])
    with pytest.raises(ZeroDivisionError), buckets.summing():
        1 / 0  # noqa: B018
    assert not weight._post_accumulate_grad_hooks


# ---------------------------------------------------------------- the cut


def test_each_gradient_begins_where_kernels_read_16_bytes():
    params = [nn.Parameter(torch.ones(count)) for count in (3, 1, 8)]
    buckets = Buckets(params)
    buckets.clear()
    places = [param.grad.storage_offset() for param in params if param.grad is not None]
    assert places == [0, 4, 8]
    assert buckets.nbytes == 4 * (4 + 4 + 8)


def test_a_gradient_larger_than_a_bucket_has_one_for_itself():
    params = [nn.Parameter(torch.ones(count)) for count in (4, 4, 100, 4)]
    buckets = Buckets(params, bucket_bytes=32)
    buckets.clear()
    storages = [p.grad.untyped_storage().data_ptr() for p in params if p.grad is not None]
    assert storages[0] == storages[1]
    assert len(set(storages)) == 3


def test_the_last_layers_come_first_and_what_begins_a_forward_pass_comes_last():
    model = Decoder(tiny_config(slots={"per_segment": 2, "segment": 8, "window": 4}))
    model.norm.weight.requires_grad_(False)
    names = {id(param): name for name, param in model.named_parameters()}
    order = [names[id(param)] for param in in_order_of_backward(model)]
    assert len(order) == len(names) - 1
    blocks = [int(name.split(".")[1]) for name in order if name.startswith("blocks.")]
    assert blocks == sorted(blocks, reverse=True)
    after = order[len(blocks) :]
    assert after[-1] == "embed.weight"
    assert {name.split(".")[0] for name in after} == {"slots", "embed"}

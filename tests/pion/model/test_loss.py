"""A loss in chunks is that of whole logits, with the memory of one chunk; so are log-probs."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from pion.bench.models import Bench
from pion.model import chunks_of_logits
from pion.model.chunks_of_logits import ROW_MULTIPLE, _learned_rows
from pion.model.loss import IGNORED, Cap, cap_logits, linear_cross_entropy, linear_log_probs
from tests.gpu.kernels import check_compiled_loss

D_MODEL, CAP, TANH = 8, Cap(5.0), Cap(5.0, "tanh")


def problem(rows, vocab, ignored=0.2, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(rows, D_MODEL, requires_grad=True)
    weight = torch.randn(vocab, D_MODEL, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    targets[torch.rand(rows) < ignored] = IGNORED
    return hidden, weight, targets


loss, log_probs = linear_cross_entropy, linear_log_probs
compiled_loss, compiled_log_probs = (partial(each, compiled=True) for each in (loss, log_probs))
LOSSES = (loss, compiled_loss)
FUNCTIONS = (*LOSSES, log_probs, compiled_log_probs)
each = pytest.mark.parametrize("function", FUNCTIONS)


def whole(function, hidden, weight, targets, cap=None):
    """Return the same as `function` from all logits at once, in the dtype of `hidden`."""
    logits = linear(hidden, weight)
    logits = logits if cap is None else cap_logits(logits, cap)
    chosen = logits.log_softmax(dim=1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    chosen = chosen * (targets != IGNORED)
    return -chosen.sum() if function in LOSSES else chosen


def weighted(values, scale=1.0):
    """Return one number of the values (n,) or (), of which each has another weight and sign."""
    own = torch.linspace(2.0, -1.0, values.numel(), dtype=values.dtype)
    return (values.reshape(-1) * own).sum() * scale


def gradients(function, hidden, weight, targets, cap=None, scale=1.0):
    """Return the values, and the gradients of their weighted sum."""
    values = function(hidden, weight, targets, cap)
    return values, *torch.autograd.grad(weighted(values, scale), (hidden, weight))


def exact(function, hidden, weight, targets, cap=None, scale=1.0):
    """Return the same as `gradients`, from all logits at once in fp64."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    values = whole(function, hidden, weight, targets, cap)
    return values, *torch.autograd.grad(weighted(values, scale), (hidden, weight))


def close(mine, reference, tolerance=1e-5):
    torch.testing.assert_close(mine.double(), reference, rtol=tolerance, atol=tolerance)


# ---------------------------------------------------------------- values and gradients


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 70),
    vocab=st.integers(2, 300),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    chunk_rows=st.integers(1, 40),
    tile=st.integers(1, 310),
    cap=st.sampled_from([None, CAP, TANH]),
    scale=st.sampled_from([1.0, 0.37, 1e-4]),
    function=st.sampled_from(FUNCTIONS),
)
@pytest.mark.usefixtures("without_compiler")
def test_values_and_gradients_are_those_of_whole_logits_however_they_are_cut(
    rows, vocab, ignored, chunk_rows, tile, cap, scale, function
):
    arguments = *problem(rows, vocab, ignored), cap, scale
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_of_logits, "CPU_CHUNK_BYTES", chunk_rows * vocab * 4)
        patch.setattr(chunks_of_logits, "CPU_TILE", tile)
        ours = gradients(function, *arguments)
    for mine, reference in zip(ours, exact(function, *arguments), strict=True):
        assert mine.dtype == torch.float32
        close(mine, reference)


@each
@pytest.mark.parametrize("cap", [None, Cap(300.0)])
def test_confident_and_hopeless_predictions_keep_their_precision(without_compiler, function, cap):
    hidden = torch.tensor([[50.0], [1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[10.0], [-10.0], [9.99]], requires_grad=True)
    arguments = hidden, weight, torch.tensor([0, 1, 2]), cap
    ours = gradients(function, *arguments)
    for mine, reference in zip(ours, exact(function, *arguments), strict=True):
        close(mine, reference)


@each
@pytest.mark.parametrize("vocab", [64, 65])
def test_ignored_targets_count_nothing_and_teach_nothing(
    without_compiler, small_chunks, function, vocab
):
    hidden, weight, targets = problem(40, vocab, ignored=0.5)
    values, grad_hidden, _ = gradients(function, hidden, weight, targets)
    learned = targets != IGNORED
    assert learned.any()
    assert not learned.all()
    assert not grad_hidden[~learned].any()
    assert grad_hidden[learned].abs().amin(dim=1).all()
    if function not in LOSSES:
        assert not values[~learned].any()
        assert (values[learned] < 0).all()
    for result in gradients(function, hidden, weight, torch.full_like(targets, IGNORED)):
        assert not result.any()


@each
def test_under_bf16_autocast_products_are_bf16_and_sums_fp32(
    without_compiler, small_chunks, function
):
    hidden, weight, targets = problem(200, 1000)
    with torch.autocast("cpu", torch.bfloat16):
        values = function(hidden, weight, targets, CAP)
    # As in training, the backward pass is outside of autocast.
    grads = torch.autograd.grad(weighted(values), (hidden, weight))
    reference = exact(function, hidden, weight, targets, CAP)
    for mine, right in zip((values, *grads), reference, strict=True):
        assert mine.dtype == torch.float32
        assert 1e-6 < (mine - right).norm() / right.norm() < 1e-2


@each
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_have_the_dtype_of_what_they_belong_to(
    without_compiler, small_chunks, function, frozen
):
    hidden, weight, targets = problem(20, 100)
    hidden, weight = (t.detach().bfloat16().requires_grad_() for t in (hidden, weight))
    values = function(hidden, weight.detach() if frozen else weight, targets)
    assert values.dtype == torch.float32
    learned = (hidden,) if frozen else (hidden, weight)
    for gradient in torch.autograd.grad(values.sum(), learned):
        assert gradient.dtype == torch.bfloat16


@each
@pytest.mark.parametrize("cap", [None, CAP, TANH])
def test_a_frozen_head_changes_neither_values_nor_the_gradient_of_the_states(
    without_compiler, small_chunks, function, cap
):
    hidden, weight, targets = problem(60, 300)
    values, grad_hidden, _ = gradients(function, hidden, weight, targets, cap)
    of_frozen = function(hidden, weight.detach(), targets, cap)
    (grad,) = torch.autograd.grad(weighted(of_frozen), (hidden,))
    if function in LOSSES:
        assert torch.equal(of_frozen, values)
        assert torch.equal(grad, grad_hidden)
    else:
        torch.testing.assert_close(of_frozen, values, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(grad, grad_hidden, rtol=1e-5, atol=1e-6)


@each
@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_logit_that_is_no_number_is_seen(without_compiler, function, broken, place):
    weight = torch.ones(3, 1)
    weight[place] = broken
    hidden = torch.ones(1, 1, requires_grad=True)
    assert not function(hidden, weight, torch.tensor([0])).isfinite().any()


# ---------------------------------------------------------------- memory


class Watch(TorchDispatchMode):
    """Counts products, and the bytes of tensors of at least `size` bytes alive at any moment."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.products = 0
        self.largest = 0
        self.most_alive = 0
        self._storages = {}

    def alive(self):
        return sum(size for ref, size in self._storages.values() if not ref.expired())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        if isinstance(result, torch.Tensor):
            storage = result.untyped_storage()
            self.largest = max(self.largest, storage.nbytes())
            if storage.nbytes() >= self.size:
                ref = StorageWeakRef(storage)
                self._storages[ref.cdata] = ref, storage.nbytes()
        self.most_alive = max(self.most_alive, self.alive())
        return result


def test_a_loss_has_one_chunk_of_logits_at_a_time_and_none_after_the_forward_pass(small_chunks):
    hidden, weight, targets = problem(100, 1000, ignored=0)
    chunk = 16 * 1000 * 4
    weight_and_gradient = 2 * weight.nbytes
    with Watch(size=chunk // 4) as forward:
        value = loss(hidden, weight, targets)
    assert forward.largest <= chunk
    assert forward.most_alive <= chunk + weight_and_gradient
    assert forward.alive() == weight_and_gradient
    with Watch(size=0) as backward:
        value.backward()
    assert backward.products == 0
    assert backward.largest == weight.nbytes


def test_log_probs_have_one_chunk_of_logits_at_a_time_and_none_after_each_pass(small_chunks):
    hidden, weight, targets = problem(100, 1000, ignored=0)
    chunk = 16 * 1000 * 4
    with Watch(size=chunk // 4) as forward:
        values = log_probs(hidden, weight, targets)
    assert forward.largest <= chunk
    # The weight, as autograd hands it to the function.
    assert forward.alive() == weight.nbytes
    with Watch(size=chunk // 4) as backward:
        values.sum().backward()
    assert backward.largest <= chunk
    assert backward.most_alive <= chunk + 2 * weight.nbytes


def test_the_watch_above_does_see_whole_logits():
    with Watch(size=16 * 1000) as watch:
        whole(loss, *problem(100, 1000, ignored=0))
    assert watch.largest >= 100 * 1000 * 4


@pytest.mark.parametrize("function", [loss, log_probs])
def test_without_gradients_only_the_logits_are_computed(small_chunks, function):
    arguments = problem(32, 96, ignored=0)
    with Watch(size=0) as training:
        function(*arguments).sum().backward()
    with torch.no_grad(), Watch(size=0) as evaluation:
        values = function(*arguments)
    assert training.products >= 3 * evaluation.products > 0
    close(values, exact(function, *arguments)[0].detach())


@pytest.mark.parametrize("function", FUNCTIONS[2:])
def test_a_frozen_head_computes_no_logits_again(without_compiler, small_chunks, function):
    hidden, weight, targets = problem(96, 1000, ignored=0)
    with Watch(size=0) as learning:
        function(hidden, weight, targets).sum().backward()
    with Watch(size=0) as forward:
        value = function(hidden, weight.detach(), targets).sum()
    with Watch(size=0) as backward:
        value.backward(retain_graph=True)
    assert forward.products > 0
    assert backward.products == 0
    assert learning.products > forward.products
    with pytest.raises(RuntimeError, match="call it only once"):
        value.backward()


def test_a_second_backward_is_refused_rather_than_wrong():
    value = loss(*problem(5, 30))
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it only once"):
        value.backward()


@pytest.mark.parametrize("learned", [1, 255, 256, 257, 600])
def test_few_row_counts_are_ever_computed_on_a_cpu(learned):
    """oneDNN keeps compiled code for every shape it meets."""
    targets = torch.full((1000,), IGNORED)
    targets[torch.randperm(1000)[:learned]] = 1
    rows = _learned_rows(targets)
    assert len(rows) % ROW_MULTIPLE == 0
    assert len(rows.unique()) == len(rows)
    assert (targets[rows] != IGNORED).sum() == learned


# ---------------------------------------------------------------- compiled


def test_compiled_gradients_pass_the_check_that_a_card_has_to_pass(small_chunks):
    """In fp32 they are those of the plain loss; in bf16 they are no further from fp32."""
    assert check_compiled_loss(Bench(torch.device("cpu"), tiny=True)).verdict == "right"


@pytest.mark.soak
@pytest.mark.parametrize("function", [compiled_loss, compiled_log_probs])
def test_the_compiler_changes_nothing(tmp_path, monkeypatch, function):
    monkeypatch.setenv("TMPDIR", "/tmp")  # the C++ compiler fails at a path with a space
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"/tmp/{tmp_path.parent.name}")
    hidden, weight, targets = problem(40, 100)
    with torch.compiler.set_stance("default"):
        ours = gradients(function, hidden, weight, targets, CAP)
        of_frozen = function(hidden, weight.detach(), targets, CAP)
        (grad,) = torch.autograd.grad(weighted(of_frozen), (hidden,))
    for mine, reference in zip(ours, exact(function, hidden, weight, targets, CAP), strict=True):
        close(mine, reference)
    torch.testing.assert_close(grad, ours[1], rtol=1e-5, atol=1e-6)

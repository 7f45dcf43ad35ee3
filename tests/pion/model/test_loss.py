"""The chunked loss is exact cross-entropy, with the memory of one chunk of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode

from pion.bench.models import Bench
from pion.model import chunks_of_logits
from pion.model.chunks_of_logits import ROW_MULTIPLE, _learned_rows
from pion.model.loss import IGNORED, linear_cross_entropy, linear_log_probs
from tests.gpu.kernels import check_compiled_loss

D_MODEL = 8


def problem(rows, vocab, ignored=0.2, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(rows, D_MODEL, requires_grad=True)
    weight = torch.randn(vocab, D_MODEL, requires_grad=True)
    targets = torch.randint(0, vocab, (rows,))
    targets[torch.rand(rows) < ignored] = IGNORED
    return hidden, weight, targets


def whole(hidden, weight, targets):
    return cross_entropy(linear(hidden, weight).float(), targets, reduction="sum")


def gradients(loss, hidden, weight, targets, scale=1.0):
    value = loss(hidden, weight, targets)
    grads = torch.autograd.grad(value * scale, (hidden, weight))
    return value, *grads


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    vocab=st.integers(2, 300),
    ignored=st.sampled_from([0.0, 0.3, 0.9]),
    chunk_rows=st.integers(1, 40),
    tile=st.integers(1, 310),
    scale=st.sampled_from([1.0, 0.37, 1e-4]),
)
def test_loss_and_gradients_are_cross_entropys_however_it_is_cut(
    rows, vocab, ignored, chunk_rows, tile, scale
):
    arguments = problem(rows, vocab, ignored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_of_logits, "CPU_CHUNK_BYTES", chunk_rows * vocab * 4)
        patch.setattr(chunks_of_logits, "CPU_TILE", tile)
        ours = gradients(linear_cross_entropy, *arguments, scale=scale)
    for mine, exact in zip(ours, gradients(whole, *arguments, scale=scale), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def test_a_confident_and_a_hopeless_prediction_keep_their_precision():
    hidden = torch.tensor([[50.0], [50.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[10.0], [-10.0], [9.99]], requires_grad=True)
    targets = torch.tensor([0, 1, 2])
    ours = gradients(linear_cross_entropy, hidden, weight, targets)
    for mine, exact in zip(ours, gradients(whole, hidden, weight, targets), strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def test_without_any_target_loss_and_gradients_are_zero():
    value, grad_hidden, grad_weight = gradients(linear_cross_entropy, *problem(5, 30, ignored=1.0))
    assert value == 0
    assert not grad_hidden.any()
    assert not grad_weight.any()


def test_rows_without_a_target_are_not_learned_from(small_chunks):
    hidden, weight, targets = problem(40, 200, ignored=0.5)
    _, grad_hidden, _ = gradients(linear_cross_entropy, hidden, weight, targets)
    learned = targets != IGNORED
    assert learned.any()
    assert not learned.all()
    assert not grad_hidden[~learned].any()
    assert grad_hidden[learned].abs().amin(dim=1).all()


def test_under_bf16_autocast_products_are_bf16_and_sums_fp32(small_chunks):
    hidden, weight, targets = problem(200, 1000)
    exact = gradients(whole, hidden, weight, targets)
    with torch.autocast("cpu", torch.bfloat16):
        value, *grads = gradients(linear_cross_entropy, hidden, weight, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, exact[0], rtol=2e-3, atol=0)
    assert not torch.equal(value, exact[0])
    for mine, reference in zip(grads, exact[1:], strict=True):
        assert mine.dtype == torch.float32
        error = (mine - reference).norm() / reference.norm()
        assert error < 1e-2


def test_gradients_have_the_dtype_of_what_they_belong_to(small_chunks):
    hidden, weight, targets = problem(20, 100)
    hidden, weight = (t.detach().bfloat16().requires_grad_() for t in (hidden, weight))
    value, grad_hidden, grad_weight = gradients(linear_cross_entropy, hidden, weight, targets)
    assert value.dtype == torch.float32
    assert grad_hidden.dtype == grad_weight.dtype == torch.bfloat16


def test_a_second_backward_is_refused_rather_than_wrong():
    hidden, weight, targets = problem(5, 30)
    value = linear_cross_entropy(hidden, weight, targets)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call it only once"):
        value.backward()


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


def test_one_chunk_of_logits_is_alive_at_a_time_and_none_after_the_forward_pass(small_chunks):
    hidden, weight, targets = problem(100, 1000, ignored=0)
    chunk = 16 * 1000 * 4
    weight_and_gradient = 2 * weight.nbytes
    with Watch(size=chunk // 4) as forward:
        value = linear_cross_entropy(hidden, weight, targets)
    assert forward.largest <= chunk
    assert forward.most_alive <= chunk + weight_and_gradient
    assert forward.alive() == weight_and_gradient
    with Watch(size=0) as backward:
        value.backward()
    assert backward.products == 0
    assert backward.largest == weight.nbytes


def test_the_watch_above_does_see_whole_logits():
    hidden, weight, targets = problem(100, 1000, ignored=0)
    with Watch(size=16 * 1000) as watch:
        whole(hidden, weight, targets)
    assert watch.largest >= 100 * 1000 * 4


def test_without_gradients_only_the_logits_are_computed(small_chunks):
    hidden, weight, targets = problem(32, 96, ignored=0)
    with Watch(size=0) as training:
        linear_cross_entropy(hidden, weight, targets)
    with torch.no_grad(), Watch(size=0) as evaluation:
        value = linear_cross_entropy(hidden, weight, targets)
    assert training.products == 3 * evaluation.products
    torch.testing.assert_close(value, whole(hidden, weight, targets).detach())


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


def compiled_loss(hidden, weight, targets, cap=None):
    return linear_cross_entropy(hidden, weight, targets, cap, compiled=True)


@pytest.mark.parametrize("cap", [None, 15.0])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("vocab", [64, 65, 1000])
def test_compiled_gradients_are_those_of_the_plain_loss(
    without_compiler, small_chunks, cap, ignored, vocab
):
    arguments = *problem(50, vocab, ignored), cap
    hidden, weight, _, _ = arguments
    for loss in (linear_cross_entropy, compiled_loss):
        value = loss(*arguments)
        grads = torch.autograd.grad(value * 0.37, (hidden, weight))
        if loss is linear_cross_entropy:
            expected = value, *grads
    assert torch.allclose(value, expected[0], rtol=1e-6)
    for mine, exact in zip(grads, expected[1:], strict=True):
        assert mine.shape == exact.shape
        assert (mine - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_compiled_gradients_pass_the_check_that_a_card_has_to_pass(small_chunks):
    """In fp32 they are those of the plain loss; in bf16 they are no further from fp32."""
    assert check_compiled_loss(Bench(torch.device("cpu"), tiny=True)).verdict == "right"


@pytest.mark.parametrize("cap", [None, 300.0])
@pytest.mark.parametrize("above", [0.0, 30.0, 95.0, -40.0])
def test_a_compiled_loss_is_right_for_hopeless_and_for_certain_predictions(
    without_compiler, above, cap
):
    # The target's logit is `above` below the largest one, or above all others.
    hidden = torch.tensor([[above], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [1.0], [0.5]], requires_grad=True)
    arguments = hidden, weight, torch.tensor([0, 2]), cap
    results = []
    for loss in (linear_cross_entropy, compiled_loss):
        value = loss(*arguments)
        results.append((value, *torch.autograd.grad(value, (hidden, weight))))
    for mine, exact in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


def negative_log_probs(hidden, weight, targets):
    return -linear_log_probs(hidden, weight, targets, compiled=True).sum()


@pytest.mark.parametrize("loss", [compiled_loss, negative_log_probs])
def test_a_compiled_loss_beyond_its_range_counts_as_its_most_and_still_teaches(
    without_compiler, loss
):
    hidden = torch.tensor([[1000.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [1.0]], requires_grad=True)
    value = loss(hidden, weight, torch.tensor([0]))
    assert value.item() == pytest.approx(chunks_of_logits.MOST_ABOVE)
    grad_hidden, grad_weight = torch.autograd.grad(value, (hidden, weight))
    torch.testing.assert_close(grad_hidden, torch.tensor([[1.0]]))
    torch.testing.assert_close(grad_weight, torch.tensor([[-1000.0], [1000.0]]))


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 1])
def test_a_compiled_loss_shows_a_logit_that_is_no_number(without_compiler, broken, place):
    weight = torch.ones(3, 1)
    weight[place] = broken
    hidden = torch.ones(1, 1, requires_grad=True)
    assert not compiled_loss(hidden, weight, torch.tensor([0])).isfinite()


def test_the_compiler_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")  # the C++ compiler fails at a path with a space
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"/tmp/{tmp_path.parent.name}")
    arguments = problem(40, 100)
    expected = gradients(linear_cross_entropy, *arguments)
    for mine, exact in zip(gradients(compiled_loss, *arguments), expected, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", [linear_cross_entropy, compiled_loss])
def test_a_frozen_head_changes_neither_the_loss_nor_the_gradient_of_the_states(
    without_compiler, small_chunks, loss
):
    hidden, weight, targets = problem(60, 300)
    value, grad_hidden, _ = gradients(loss, hidden, weight, targets)
    with_frozen_head = loss(hidden, weight.detach(), targets)
    (grad,) = torch.autograd.grad(with_frozen_head, (hidden,))
    assert torch.equal(with_frozen_head, value)
    assert torch.equal(grad, grad_hidden)

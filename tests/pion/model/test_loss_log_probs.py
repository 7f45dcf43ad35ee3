"""Log-probabilities in chunks are those of whole logits, with the memory of one chunk."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from pion.model import chunks_of_logits
from pion.model.loss import IGNORED, cap_logits, linear_cross_entropy, linear_log_probs
from tests.pion.model.test_loss import Watch, problem

pytestmark = pytest.mark.usefixtures("without_compiler")

CAP = 5.0


def whole(hidden, weight, targets, cap=None):
    """Return the same from all logits at once, by autograd, in the dtype of `hidden`."""
    logits = linear(hidden, weight)
    logits = logits if cap is None else cap_logits(logits, cap)
    chosen = logits.log_softmax(dim=1).gather(1, targets.clamp(min=0)[:, None])[:, 0]
    return chosen * (targets != IGNORED)


def exact(hidden, weight, targets, cap=None):
    """Return the log-probabilities and the gradients of their weighted sum, in fp64."""
    hidden, weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    return gradients(whole, hidden, weight, targets, cap)


def gradients(function, hidden, weight, targets, cap=None):
    """Return the log-probabilities and the gradients. Each token has another weight and sign."""
    values = function(hidden, weight, targets, cap)
    own = torch.linspace(-1.0, 2.0, len(hidden), dtype=values.dtype)
    return values, *torch.autograd.grad((values * own).sum(), (hidden, weight))


def compiled_log_probs(hidden, weight, targets, cap=None):
    return linear_log_probs(hidden, weight, targets, cap, compiled=True)


def close(mine, reference, tolerance=1e-5):
    torch.testing.assert_close(mine.double(), reference, rtol=tolerance, atol=tolerance)


both = pytest.mark.parametrize("function", [linear_log_probs, compiled_log_probs])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    vocab=st.integers(2, 300),
    ignored=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    chunk_rows=st.integers(1, 40),
    tile=st.integers(1, 310),
    cap=st.sampled_from([None, CAP]),
    function=st.sampled_from([linear_log_probs, compiled_log_probs]),
)
def test_values_and_gradients_are_those_of_whole_logits_however_they_are_cut(
    rows, vocab, ignored, chunk_rows, tile, cap, function
):
    arguments = *problem(rows, vocab, ignored), cap
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks_of_logits, "CPU_CHUNK_BYTES", chunk_rows * vocab * 4)
        patch.setattr(chunks_of_logits, "CPU_TILE", tile)
        ours = gradients(function, *arguments)
    for mine, reference in zip(ours, exact(*arguments), strict=True):
        assert mine.dtype == torch.float32
        close(mine, reference)


@both
def test_their_sum_and_its_gradients_are_those_of_the_cross_entropy(small_chunks, function):
    hidden, weight, targets = problem(80, 500)
    loss = linear_cross_entropy(hidden, weight, targets, CAP)
    expected = torch.autograd.grad(loss, (hidden, weight))
    values = function(hidden, weight, targets, CAP)
    assert (-values.sum()).item() == pytest.approx(loss.item(), rel=1e-6)
    for mine, reference in zip(
        torch.autograd.grad(-values.sum(), (hidden, weight)), expected, strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


@both
@pytest.mark.parametrize("vocab", [63, 64, 65])
def test_ignored_targets_are_zero_and_teach_nothing(small_chunks, function, vocab):
    hidden, weight, targets = problem(40, vocab, ignored=0.5)
    values, grad_hidden, _ = gradients(function, hidden, weight, targets)
    learned = targets != IGNORED
    assert learned.any()
    assert not learned.all()
    assert not values[~learned].any()
    assert (values[learned] < 0).all()
    assert not grad_hidden[~learned].any()
    nothing = torch.full_like(targets, IGNORED)
    for result in gradients(function, hidden, weight, nothing):
        assert not result.any()


@both
def test_under_bf16_autocast_products_are_bf16_and_sums_fp32(small_chunks, function):
    hidden, weight, targets = problem(200, 1000)
    reference = exact(hidden, weight, targets, CAP)
    with torch.autocast("cpu", torch.bfloat16):
        values = function(hidden, weight, targets, CAP)
    # As in training, the backward pass is outside of autocast.
    own = torch.linspace(-1.0, 2.0, len(hidden))
    grads = torch.autograd.grad((values * own).sum(), (hidden, weight))
    for mine, right in zip((values, *grads), reference, strict=True):
        assert mine.dtype == torch.float32
        error = (mine - right).norm() / right.norm()
        assert 1e-5 < error < 1e-2


@both
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_have_the_dtype_of_what_they_belong_to(small_chunks, function, frozen):
    hidden, weight, targets = problem(20, 100)
    hidden, weight = (t.detach().bfloat16().requires_grad_() for t in (hidden, weight))
    values = function(hidden, weight.detach() if frozen else weight, targets)
    assert values.dtype == torch.float32
    learned = (hidden,) if frozen else (hidden, weight)
    for gradient in torch.autograd.grad(values.sum(), learned):
        assert gradient.dtype == torch.bfloat16


@both
@pytest.mark.parametrize("cap", [None, CAP])
def test_a_frozen_head_changes_neither_values_nor_the_gradient_of_the_states(
    small_chunks, function, cap
):
    hidden, weight, targets = problem(60, 300)
    values, grad_hidden, _ = gradients(function, hidden, weight, targets, cap)
    of_frozen = function(hidden, weight.detach(), targets, cap)
    own = torch.linspace(-1.0, 2.0, len(hidden))
    (grad,) = torch.autograd.grad((of_frozen * own).sum(), (hidden,))
    torch.testing.assert_close(of_frozen, values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad, grad_hidden, rtol=1e-5, atol=1e-6)


@both
def test_a_frozen_head_computes_no_logits_again(small_chunks, function):
    hidden, weight, targets = problem(96, 1000, ignored=0)
    with Watch(size=0) as learning:
        function(hidden, weight, targets).sum().backward()
    with Watch(size=0) as forward:
        values = function(hidden, weight.detach(), targets)
    with Watch(size=0) as backward:
        values.sum().backward()
    assert forward.products > 0
    assert backward.products == 0
    assert learning.products > forward.products
    with pytest.raises(RuntimeError, match="call it only once"):
        function_of_twice(function, hidden, weight.detach(), targets)


def function_of_twice(function, hidden, weight, targets):
    value = function(hidden, weight, targets).sum()
    value.backward(retain_graph=True)
    value.backward()


def test_one_chunk_of_logits_is_alive_at_a_time_and_none_after_each_pass(small_chunks):
    hidden, weight, targets = problem(100, 1000, ignored=0)
    chunk = 16 * 1000 * 4
    with Watch(size=chunk // 4) as forward:
        values = linear_log_probs(hidden, weight, targets)
    assert forward.largest <= chunk
    # The weight, as autograd hands it to the function.
    assert forward.alive() == weight.nbytes
    with Watch(size=chunk // 4) as backward:
        values.sum().backward()
    assert backward.largest <= chunk
    assert backward.most_alive <= chunk + 2 * weight.nbytes


def test_without_gradients_nothing_else_is_computed(small_chunks):
    hidden, weight, targets = problem(32, 96, ignored=0)
    with torch.no_grad(), Watch(size=0) as evaluation:
        values = linear_log_probs(hidden, weight, targets)
    assert evaluation.products == 1
    close(values, whole(hidden.double(), weight.double(), targets).detach())


@both
def test_confident_and_hopeless_predictions_keep_their_precision(function):
    hidden = torch.tensor([[50.0], [1.0], [-1.0]], requires_grad=True)
    weight = torch.tensor([[10.0], [-10.0], [9.99]], requires_grad=True)
    arguments = hidden, weight, torch.tensor([0, 1, 2])
    for mine, reference in zip(gradients(function, *arguments), exact(*arguments), strict=True):
        close(mine, reference)


@both
@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_a_logit_that_is_no_number_is_seen(function, broken):
    weight = torch.tensor([[1.0], [broken], [1.0]])
    hidden = torch.ones(1, 1, requires_grad=True)
    assert not function(hidden, weight, torch.tensor([0])).isfinite().any()


@pytest.mark.soak
def test_the_compiler_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")  # the C++ compiler fails at a path with a space
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"/tmp/{tmp_path.parent.name}")
    hidden, weight, targets = problem(40, 100)
    own = torch.linspace(-1.0, 2.0, 40)
    with torch.compiler.set_stance("default"):
        values = compiled_log_probs(hidden, weight, targets, CAP)
        grads = torch.autograd.grad((values * own).sum(), (hidden, weight))
        of_frozen = compiled_log_probs(hidden, weight.detach(), targets, CAP)
        (grad,) = torch.autograd.grad((of_frozen * own).sum(), (hidden,))
    for mine, reference in zip((values, *grads), exact(hidden, weight, targets, CAP), strict=True):
        close(mine, reference)
    torch.testing.assert_close(grad, grads[0], rtol=1e-5, atol=1e-6)

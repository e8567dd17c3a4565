"""Softmax and self-attention without weights."""

import pytest
import torch
from examples import TRACERS, said

from attention import simple_self_attention, softmax


def test_softmax_equals_pytorchs():
    scores = 5 * torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(softmax(scores), torch.softmax(scores, dim=-1))


def test_weights_are_not_negative_and_rows_sum_to_one():
    weights = softmax(torch.randn(3, 7))
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_scores_of_any_size_stay_finite(dtype):
    scores = torch.tensor([1e4, -1e4, 0.0], dtype=dtype)
    assert softmax(scores).tolist() == [1.0, 0.0, 0.0]


def test_a_shift_of_all_scores_changes_nothing():
    scores = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(softmax(scores + 1000), softmax(scores))


def test_a_row_of_minus_infinity_gives_zeros_and_a_zero_gradient():
    scores = torch.tensor([[-torch.inf] * 3, [0.0, 1.0, 2.0]], requires_grad=True)
    weights = softmax(scores)
    assert weights[0].tolist() == [0.0, 0.0, 0.0]
    (1e30 * weights).sum().backward()
    assert scores.grad[0].tolist() == [0.0, 0.0, 0.0]
    assert scores.grad.isfinite().all()


def test_no_keys_give_no_weights():
    assert softmax(torch.empty(3, 0)).shape == (3, 0)


def test_a_nan_among_the_scores_is_not_hidden():
    weights = softmax(torch.tensor([[0.0, torch.nan], [0.0, 1.0]]))
    assert weights[0].isnan().all()
    assert weights[1].isfinite().all()


def test_the_gradient_of_softmax_is_right():
    scores = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(softmax, scores)
    assert torch.autograd.gradgradcheck(softmax, scores)


def test_softmax_leaves_its_input_alone():
    scores = torch.randn(3, 5)
    before = scores.clone()
    softmax(scores)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("scores", "fields"),
    [
        (torch.ones(3, dtype=torch.int64), ("scores", "floats", "int64 (3,)")),
        (torch.tensor(1.0), ("scores", "last axis", "float32 ()")),
    ],
)
def test_softmax_refuses_what_has_no_scores(as_importer, scores, fields):
    with pytest.raises(ValueError, match=said(*fields)):
        softmax(scores)


@pytest.mark.parametrize("call", [softmax, simple_self_attention])
def test_what_is_no_tensor_is_refused(as_importer, call):
    with pytest.raises(TypeError, match=said("torch.Tensor", "got list")):
        call([[1.0, 2.0]])


class Softmax(torch.nn.Module):
    """A function as a module, for what takes modules only."""

    def forward(self, scores):
        return softmax(scores)


class Simple(torch.nn.Module):
    def forward(self, x):
        return simple_self_attention(x)


@pytest.mark.parametrize("module", [Softmax(), Simple()], ids=["softmax", "attention"])
@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_traced_it_computes_the_same(as_importer, traced, module):
    x = torch.randn(3, 5, 7)
    torch.testing.assert_close(traced(module, x)(x), module(x))


@pytest.mark.parametrize("call", [softmax, simple_self_attention])
def test_vmap_takes_one_after_the_other(as_importer, call):
    x = torch.randn(3, 5, 7)
    torch.testing.assert_close(torch.vmap(call)(x), call(x))


def test_more_keys_than_the_largest_float16_share_the_weight():
    weights = softmax(torch.zeros(70_000, dtype=torch.float16))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 70_000))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_scores_do_not_overflow(dtype):
    x = (60 * torch.randn(2, 7, 64)).to(dtype)  # a token with itself scores 230,000
    context = simple_self_attention(x)
    assert context.dtype == dtype
    torch.testing.assert_close(context, simple_self_attention(x.float()).to(dtype))


def test_under_autocast_scores_of_16_bits_are_in_32_too():
    x = (2 + 0.1 * torch.randn(5, 64)).bfloat16()
    must = simple_self_attention(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(simple_self_attention(x), must)


@pytest.mark.parametrize("length", [0, 1, 5])
def test_the_dtype_does_not_depend_on_the_length(length):
    x = torch.randn(length, 7)
    assert softmax(x.half()).dtype == torch.float16
    assert softmax(x[:, :0].half()).dtype == torch.float16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert simple_self_attention(x).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_under_autocast_on_cuda_no_keys_have_the_dtype_of_some():
    scores = torch.randn(3, 5, device="cuda").half()
    with torch.autocast("cuda"):
        assert softmax(scores[:, :0]).dtype == softmax(scores).dtype == torch.float32


def by_loops(x):
    contexts = []
    for query in x:
        powers = torch.stack([query.dot(key) for key in x]).exp()
        shares = powers / powers.sum()
        contexts.append(sum(s * value for s, value in zip(shares, x, strict=True)))
    return torch.stack(contexts)


def test_simple_self_attention_equals_the_loops():
    x = torch.randn(5, 3)
    torch.testing.assert_close(simple_self_attention(x), by_loops(x))


def test_a_batch_gives_each_sentence_what_it_gets_alone():
    x = torch.randn(2, 3, 5, 7)
    alone = torch.stack([torch.stack([*map(simple_self_attention, b)]) for b in x])
    torch.testing.assert_close(simple_self_attention(x), alone)


def test_permuted_tokens_give_permuted_contexts():
    x, order = torch.randn(5, 3), torch.randperm(5)
    permuted = simple_self_attention(x[order])
    torch.testing.assert_close(permuted, simple_self_attention(x)[order])


def test_equal_tokens_get_equal_contexts():
    x = torch.randn(5, 3)
    x[4] = x[1]
    context = simple_self_attention(x)
    torch.testing.assert_close(context[4], context[1])


@pytest.mark.parametrize(
    ("x", "fields"),
    [
        (torch.ones(3), ("x", "length, d_in", "got", (3,))),
        (torch.ones(3, 2, dtype=torch.int64), ("x", "floats", "got", "int64")),
    ],
)
def test_simple_self_attention_refuses_a_misfit(as_importer, x, fields):
    with pytest.raises(ValueError, match=said(*fields)):
        simple_self_attention(x)


@pytest.mark.parametrize("hidden", [0, 1, 5])
def test_the_slope_of_a_row_that_sees_one_key_is_zero(hidden):
    """The sum of its exponentials is exactly 1, where a clamp at 1 has no slope."""
    scores = torch.tensor([[0.3] + [-torch.inf] * hidden], dtype=torch.float64)
    scores.requires_grad_()
    (gradient,) = torch.autograd.grad(softmax(scores)[0, 0], scores)
    assert (gradient == 0).all()

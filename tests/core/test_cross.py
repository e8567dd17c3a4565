"""Cross-attention: two sequences, of any length and width."""

import copy
from functools import partial

import pytest
import torch
from examples import said
from torch import nn

from attention import CrossAttention, attend, attention_weights, padding_mask


def some_inputs():
    """Another prime size on every axis."""
    module = CrossAttention(3, 22, 11, d_context=13)
    return module, torch.randn(2, 5, 3), torch.randn(2, 7, 13)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_it_equals_pytorchs_for_inputs_of_different_widths(qkv_bias):
    module = CrossAttention(22, 22, 11, d_context=13, qkv_bias=qkv_bias)
    peer = nn.MultiheadAttention(22, 11, kdim=13, vdim=13, batch_first=True)
    layers = (module.W_query, module.W_key, module.W_value)
    weights = (peer.q_proj_weight, peer.k_proj_weight, peer.v_proj_weight)
    with torch.no_grad():
        for layer, weight in zip(layers, weights, strict=True):
            weight.copy_(layer.weight)
        peer.in_proj_bias.zero_()
        if qkv_bias:
            peer.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        peer.out_proj.load_state_dict(module.out_proj.state_dict())
    x, other = torch.randn(2, 5, 22), torch.randn(2, 7, 13)
    context, maps = peer(x, other, other, average_attn_weights=False)
    torch.testing.assert_close(module(x, other), context)
    torch.testing.assert_close(module.attention_weights(x, other), maps)


def test_the_fused_path_equals_the_by_hand_path():
    module, x, other = some_inputs()

    def by_hand(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
        assert not causal
        return attention_weights(queries, keys, mask) @ values

    slow = CrossAttention(3, 22, 11, d_context=13, attend=by_hand)
    slow.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x, other), slow(x, other))


def test_the_context_has_the_width_of_x_unless_told_otherwise():
    module, x = CrossAttention(3, 22, 11), torch.randn(2, 5, 3)
    assert module(x, x).shape == (2, 5, 22)


def test_the_heads_share_the_width_and_no_bias_is_added_unless_asked_for():
    module = CrossAttention(3, 22, 11)
    assert module.head_dim == 2
    assert {name for name, _ in module.named_parameters() if "bias" in name} == {
        "out_proj.bias"
    }


def test_each_query_is_answered_by_itself():
    module, x, other = some_inputs()
    torch.testing.assert_close(module(x[:, 2:3], other), module(x, other)[:, 2:3])


def test_the_order_of_the_context_does_not_matter():
    module, x, other = some_inputs()
    shuffled = other[:, torch.randperm(7)]
    torch.testing.assert_close(module(x, shuffled), module(x, other))


def test_every_query_hears_every_token_of_the_context():
    module, x, other = some_inputs()
    for j in range(7):
        louder = other.clone()
        louder[:, j] += 1
        moved = (module(x, louder) - module(x, other)).abs().amax(dim=-1)
        assert (moved > 0).all()


def test_padding_of_the_context_changes_nothing():
    module, x, other = some_inputs()
    mask = padding_mask(torch.tensor([2, 7]), 7)
    result = module(x, other, mask)
    torch.testing.assert_close(result[0], module(x[0], other[0, :2]))
    torch.testing.assert_close(result[1], module(x[1], other[1]))


def test_a_context_of_padding_alone_gives_the_bias_and_finite_gradients():
    module, x, other = some_inputs()
    x.requires_grad_()
    result = module(x, other, padding_mask(torch.tensor([0, 7]), 7))
    torch.testing.assert_close(result[0], module.out_proj.bias.expand(5, 22))
    result.pow(2).sum().backward()
    assert (x.grad[0] == 0).all()
    assert x.grad.isfinite().all()


def test_rows_of_weights_sum_to_one():
    module, x, other = some_inputs()
    weights = module.attention_weights(x, other)
    assert weights.shape == (2, 11, 5, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 11, 5))


def test_a_batch_gives_each_pair_what_it_gets_alone():
    module, x, other = some_inputs()
    alone = torch.stack([module(a, b) for a, b in zip(x, other, strict=True)])
    torch.testing.assert_close(module(x, other), alone)


def test_the_gradient_is_right():
    module, x, other = some_inputs()
    inputs = (x[:1].double().requires_grad_(), other[:1].double().requires_grad_())
    assert torch.autograd.gradcheck(module.double(), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    module, x, other = some_inputs()
    exact = module.double()(x.double(), other.double())
    half = copy.deepcopy(module).to(dtype)(x.to(dtype), other.to(dtype))
    error = (half - exact).abs().max() / exact.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_dropout_acts_in_training_only():
    module = CrossAttention(3, 22, 11, dropout=0.5)
    x = torch.randn(2, 5, 3)
    assert not torch.equal(module(x, x), module(x, x))
    plain = CrossAttention(3, 22, 11)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(x, x), plain(x, x))


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((3, 22, 5), {}, "d_out=22 must be a multiple of num_heads=5"),
        ((3, 22, 0), {}, said("num_heads", "a whole number", "got 0")),
        ((0, 22, 11), {}, said("d_in", "a whole number", "got 0")),
        ((3, 22, 11), {"d_context": 0}, said("d_context", "a whole number", "got 0")),
    ],
)
def test_impossible_sizes_are_refused(as_importer, sizes, options, message):
    with pytest.raises(ValueError, match=message):
        CrossAttention(*sizes, **options)


BAD_INPUT = [
    ({"x": torch.randn(2, 5, 13)}, said("x", "d_in=3", "got", "(2, 5, 13)")),
    (
        {"context_input": torch.randn(2, 7, 3)},
        said("context_input", "d_context=13", "got", "(2, 7, 3)"),
    ),
    (
        {"context_input": torch.randn(13)},
        said("context_input", "d_context=13", "got", "(13,)"),
    ),
    (
        {"context_input": torch.randn(3, 7, 13)},
        said("context_input", "(2,)", "got (3,)"),
    ),
    ({"context_input": torch.randn(7, 13)}, said("context_input", "(2,)", "got ()")),
    (
        {"context_input": torch.randn(2, 7, 13).double()},
        said("context_input", "torch.float32 on cpu", "got torch.float64"),
    ),
    (
        {"context_input": torch.empty(2, 7, 13, device="meta")},
        said("context_input", "on cpu", "got", "on meta"),
    ),
    (
        {"mask": torch.ones(5, 5, dtype=torch.bool)},
        said("mask", "broadcasts to (2, 11, 5, 7)", "got (5, 5)"),
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUT)
def test_a_misfit_is_refused_and_both_sides_are_named(as_importer, change, message):
    module, x, other = some_inputs()
    arguments = {"x": x, "context_input": other} | change
    for use in (module, module.attention_weights):
        with pytest.raises(ValueError, match=message):
            use(**arguments)


def test_a_context_that_is_no_tensor_is_refused(as_importer):
    module, x, other = some_inputs()
    for use in (module, module.attention_weights):
        message = said("context_input", "torch.Tensor", "got list")
        with pytest.raises(TypeError, match=message):
            use(x, other.tolist())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_gives_the_numbers_of_the_cpu():
    module, x, other = some_inputs()
    expected = module(x, other)
    context = module.cuda()(x.cuda(), other.cuda())
    torch.testing.assert_close(context.cpu(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 7, 15, 16, 40])
def test_under_autocast_the_two_sides_may_have_two_dtypes(length):
    cross = CrossAttention(8, 8, 2).eval()
    x, read = torch.randn(2, 5, 8), torch.randn(2, length, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contexts = cross(x.bfloat16(), read), cross(x, read.bfloat16()), cross(x, read)
        weights = cross.attention_weights(x.bfloat16(), read)
    for context in contexts:
        assert context.dtype == torch.bfloat16
        torch.testing.assert_close(context.float(), cross(x, read), rtol=0, atol=0.05)
    assert weights.dtype == torch.bfloat16


def test_the_map_is_that_of_the_form_handed_in():
    form = partial(attend, scale=5.0)
    cross = CrossAttention(3, 6, 2, d_context=5, attend=form)
    x, read = torch.randn(2, 5, 3), torch.randn(2, 7, 5)
    values = cross._inputs(x, read)[2]
    shown = (cross.attention_weights(x, read) @ values).transpose(1, 2).flatten(-2)
    torch.testing.assert_close(cross.out_proj(shown), cross(x, read))

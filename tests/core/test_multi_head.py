"""Multi-head attention: both forms, PyTorch's, and the companion's class."""

import copy
import inspect
import pickle
from functools import partial

import pytest
import torch
from examples import TRACERS, said
from torch import nn

from attention import (
    CausalAttention,
    MultiHeadAttention,
    StackedHeads,
    attend,
    attention_weights,
    future_leak,
)


def stack(**options):
    return StackedHeads(3, 2, 11, 0.0, 5, **options)


def split(**options):
    return MultiHeadAttention(3, 10, 11, 0.0, 5, **options)


BOTH = [stack, split]


def some_module(**options):
    return split(**options), torch.randn(2, 7, 3)


def merged(stacked):
    """A MultiHeadAttention with the weights of `stacked`, and an idle projection."""
    heads = stacked.heads
    width, d_in = heads[0].W_query.weight.shape
    bias = heads[0].W_query.bias is not None
    d_out = width * len(heads)
    module = MultiHeadAttention(d_in, d_out, 11, 0.0, len(heads), bias)
    states = [head.state_dict() for head in heads]
    state = {name: torch.cat([s[name] for s in states]) for name in states[0]}
    idle = {"out_proj.weight": torch.eye(d_out), "out_proj.bias": torch.zeros(d_out)}
    module.load_state_dict(state | idle)
    return module


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_stack_and_split_give_the_same_numbers(qkv_bias):
    stacked, x = stack(qkv_bias=qkv_bias), torch.randn(2, 7, 3)
    module = merged(stacked)
    torch.testing.assert_close(module(x), stacked(x))
    torch.testing.assert_close(
        module.attention_weights(x), stacked.attention_weights(x)
    )


def test_a_stack_is_its_heads_side_by_side():
    stacked, x = stack(), torch.randn(2, 7, 3)
    context = torch.cat([head(x) for head in stacked.heads], dim=-1)
    torch.testing.assert_close(stacked(x), context)
    assert all(isinstance(head, CausalAttention) for head in stacked.heads)


@pytest.mark.parametrize("qkv_bias", [False, True])
def test_the_module_equals_pytorchs(qkv_bias):
    module = MultiHeadAttention(10, 10, 11, 0.0, 5, qkv_bias)
    x = torch.randn(2, 7, 10)
    peer = nn.MultiheadAttention(10, 5, bias=True, batch_first=True)
    layers = (module.W_query, module.W_key, module.W_value)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        peer.in_proj_bias.zero_()
        if qkv_bias:
            peer.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        peer.out_proj.load_state_dict(module.out_proj.state_dict())
    forbidden = torch.ones(7, 7, dtype=torch.bool).triu(1)
    context, weights = peer(x, x, x, attn_mask=forbidden, average_attn_weights=False)
    torch.testing.assert_close(module(x), context)
    torch.testing.assert_close(module.attention_weights(x), weights)


def by_hand(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
    return attention_weights(queries, keys, mask, causal=causal) @ values


@pytest.mark.parametrize("make", BOTH)
def test_the_fused_path_equals_the_by_hand_path(make):
    module, x = make(), torch.randn(2, 7, 3)
    slow = make(attend=by_hand)
    slow.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), slow(x))


@pytest.mark.parametrize("make", BOTH)
def test_nothing_leaks(make):
    assert future_leak(make(), torch.randn(2, 7, 3)) == 0


@pytest.mark.parametrize("make", BOTH)
def test_every_token_hears_every_earlier_one(make):
    module, x = make(), torch.randn(7, 3)
    for j in range(7):
        louder = x.clone()
        louder[j] += 1
        moved = (module(louder) - module(x)).abs().amax(dim=-1) > 0
        assert moved.tolist() == [i >= j for i in range(7)]


@pytest.mark.parametrize("make", BOTH)
def test_a_batch_gives_each_sentence_what_it_gets_alone(make):
    module, x = make(), torch.randn(2, 3, 7, 3)
    alone = torch.stack([torch.stack([module(s) for s in batch]) for batch in x])
    torch.testing.assert_close(module(x), alone)


@pytest.mark.parametrize("make", BOTH)
def test_rows_of_weights_sum_to_one_and_see_no_future(make):
    weights = make().attention_weights(torch.randn(2, 7, 3))
    assert weights.shape == (2, 5, 7, 7)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 5, 7))
    assert (weights.triu(1) == 0).all()


def test_padding_changes_nothing_for_real_tokens():
    module, x = some_module()
    padded = torch.cat([torch.randn(2, 4, 3), x], dim=1)  # padding on the left
    mask = torch.ones(11, dtype=torch.bool)
    mask[:4] = False
    torch.testing.assert_close(module(padded, mask)[:, 4:], module(x))


def test_a_token_that_sees_nothing_gets_the_bias_of_the_projection():
    module, x = some_module()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[2] = False
    torch.testing.assert_close(module(x, mask)[0, 2], module.out_proj.bias)


def test_a_mask_may_differ_by_sentence_and_head():
    module, x = some_module()
    mask = torch.rand(2, 5, 7, 7) < 0.5
    mask[..., 0] = True
    weights = module.attention_weights(x, mask)
    assert (weights[~mask] == 0).all()
    values = module.W_value(x).view(2, 7, 5, 2).transpose(1, 2)
    context = (weights @ values).transpose(1, 2).reshape(2, 7, 10)
    torch.testing.assert_close(module(x, mask), module.out_proj(context))


def test_the_gradient_is_right():
    module, x = some_module()
    module, x = module.double(), x[:1].double().requires_grad_()
    assert torch.autograd.gradcheck(module, x)


def test_all_parameters_receive_a_gradient():
    module, x = some_module(qkv_bias=True)
    module(x).pow(2).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    module, x = some_module()
    exact = module.double()(x.double())
    half = copy.deepcopy(module).to(dtype)(x.to(dtype))
    assert half.dtype == dtype
    error = (half - exact).abs().max() / exact.abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_without_gradients_it_computes_the_same():
    module, x = some_module()
    with torch.inference_mode():
        context = module(x)
    torch.testing.assert_close(context, module(x))


def test_compiled_and_exported_it_computes_the_same(as_importer):
    module, x = some_module()
    compiled, mask = TRACERS["compile"](module), torch.rand(7, 7) < 0.5
    torch.testing.assert_close(compiled(x), module(x))
    torch.testing.assert_close(compiled(x, mask), module(x, mask))
    exported = TRACERS["export"](module, x)
    torch.testing.assert_close(exported(x), module(x))


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("make", BOTH)
def test_a_copy_computes_the_same(make, copied):
    module, x = make(), torch.randn(2, 7, 3)
    torch.testing.assert_close(copied(module)(x), module(x))


@pytest.mark.parametrize("make", BOTH)
def test_queries_keys_and_values_have_no_bias_unless_asked_for(make):
    names = {name.removeprefix("heads.0.") for name, _ in make().named_parameters()}
    assert not names & {"W_query.bias", "W_key.bias", "W_value.bias"}
    names = {name for name, _ in make(qkv_bias=True).named_parameters()}
    assert {name.removeprefix("heads.0.") for name in names} >= {"W_query.bias"}


def test_the_heads_share_the_width():
    assert split().head_dim == 2


def test_dropout_keeps_the_expected_output():
    module = MultiHeadAttention(3, 10, 11, 0.3, 5)
    x = torch.randn(7, 3)
    expected = copy.deepcopy(module).eval()(x)
    with torch.no_grad():
        draws = [module(x.expand(100, 7, 3)) for _ in range(40)]
    mean = torch.cat(draws).mean(dim=0)
    # the spread of a mean of 4000 draws is about 0.005 here
    torch.testing.assert_close(mean, expected, atol=0.03, rtol=0)


def test_the_meta_device_gives_shapes_without_work():
    with torch.device("meta"):
        module = MultiHeadAttention(768, 768, 1024, 0.0, 12)
        assert module(torch.empty(2, 1024, 768)).shape == (2, 1024, 768)


def test_the_module_follows_a_move_to_another_dtype_and_device():
    module, x = some_module()
    assert module.double()(x.double()).dtype == torch.float64
    assert {p.device.type for p in module.to("meta").parameters()} == {"meta"}


# A drop-in for the companion's class


def test_the_arguments_are_the_companions_by_place_and_by_name():
    names = list(inspect.signature(MultiHeadAttention).parameters)
    companion = ["d_in", "d_out", "context_length", "dropout", "num_heads", "qkv_bias"]
    assert names == [*companion, "attend"]
    by_place = MultiHeadAttention(3, 10, 11, 0.1, 5, True)
    by_name = MultiHeadAttention(
        d_in=3, d_out=10, context_length=11, dropout=0.1, num_heads=5, qkv_bias=True
    )
    shapes = [
        [(n, p.shape) for n, p in m.named_parameters()] for m in (by_place, by_name)
    ]
    assert shapes[0] == shapes[1]


def test_layers_are_made_in_the_companions_order():
    torch.manual_seed(7)
    module = MultiHeadAttention(3, 10, 11, 0.0, 5, qkv_bias=True)
    torch.manual_seed(7)
    layers = [nn.Linear(3, 10) for _ in range(3)] + [nn.Linear(10, 10)]
    ours = (module.W_query, module.W_key, module.W_value, module.out_proj)
    for one, two in zip(ours, layers, strict=True):
        assert torch.equal(one.weight, two.weight)
        assert torch.equal(one.bias, two.bias)


def test_parameters_have_the_companions_names():
    names = [name for name, _ in some_module()[0].named_parameters()]
    layers = ["W_query", "W_key", "W_value", "out_proj"]
    assert names == [f"{layer}.weight" for layer in layers] + ["out_proj.bias"]


@pytest.mark.parametrize("make", BOTH)
def test_a_checkpoint_with_masks_loads_strictly(make):
    donor, module, x = make(), make(), torch.randn(2, 7, 3)
    forbidden = torch.triu(torch.ones(11, 11), diagonal=1)
    checkpoint = donor.state_dict()
    prefixes = {
        name.rsplit("W_query", 1)[0] for name in checkpoint if "W_query" in name
    }
    checkpoint |= {f"{prefix}mask": forbidden for prefix in prefixes}
    module.load_state_dict(checkpoint, strict=True)
    torch.testing.assert_close(module(x), donor(x))


def test_gpt2_small_has_the_published_number_of_parameters():
    with torch.device("meta"):
        without = MultiHeadAttention(768, 768, 1024, 0.1, 12)
        with_bias = MultiHeadAttention(768, 768, 1024, 0.1, 12, qkv_bias=True)
    assert sum(p.numel() for p in without.parameters()) == 2_360_064
    assert sum(p.numel() for p in with_bias.parameters()) == 2_362_368


# Misfits


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 10, 11, 0.0, 4), "d_out=10 must be a multiple of num_heads=4"),
        ((3, 10, 11, 0.0, 0), said("num_heads", "a whole number", "got 0")),
        ((3, 10, 11, 0.0, -2), said("num_heads", "a whole number", "got -2")),
        ((0, 10, 11, 0.0, 5), said("d_in", "a whole number", "got 0")),
        ((3, 0, 11, 0.0, 5), said("d_out", "a whole number", "got 0")),
        ((3, 10, 0, 0.0, 5), said("context_length", "a whole number", "got 0")),
        ((3, 10, 11, 1.5, 5), "dropout: expected a probability from 0 to 1"),
    ],
)
def test_impossible_sizes_are_refused(as_importer, arguments, message):
    with pytest.raises(ValueError, match=message):
        MultiHeadAttention(*arguments)


def test_a_stack_without_heads_is_refused(as_importer):
    with pytest.raises(ValueError, match=said("num_heads", "a whole number", "got 0")):
        StackedHeads(3, 2, 11, 0.0, 0)


BAD_INPUT = [
    (torch.randn(2, 12, 3), {}, said("x", "context_length=11", "got length 12")),
    (torch.randn(2, 7, 5), {}, said("x", "d_in=3", "got", "(2, 7, 5)")),
    (torch.randn(3), {}, said("x", "d_in=3", "got", "(3,)")),
    (
        torch.randn(2, 7, 3).double(),
        {},
        said("x", "torch.float32", "got torch.float64"),
    ),
    (
        torch.ones(2, 7, 3).long(),
        {},
        said("x", "floats", "got torch.int64"),
    ),
    (torch.empty(2, 7, 3, device="meta"), {}, said("x", "on cpu", "got", "on meta")),
    (
        torch.randn(2, 7, 3),
        {"mask": torch.ones(7, 7)},
        said("mask", "booleans", "got torch.float32"),
    ),
    (
        torch.randn(2, 7, 3),
        {"mask": torch.ones(5, 5, dtype=torch.bool)},
        said("mask", "broadcasts to (2, ", "7, 7)", "got (5, 5)"),
    ),
]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize(("x", "options", "message"), BAD_INPUT)
def test_a_misfit_is_refused_and_both_sides_are_named(
    as_importer, make, x, options, message
):
    module = make()
    for use in (module, module.attention_weights):
        with pytest.raises(ValueError, match=message):
            use(x, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("make", BOTH)
def test_cuda_gives_the_numbers_of_the_cpu(make):
    module, x = make(), torch.randn(2, 7, 3)
    expected = module(x)
    context = module.cuda()(x.cuda())
    torch.testing.assert_close(context.cpu(), expected, atol=1e-5, rtol=1e-4)


def test_attend_is_the_default():
    assert some_module()[0].attend is attend


def test_monte_carlo_dropout_is_switched_by_the_layer_itself():
    module, x = MultiHeadAttention(6, 6, 11, 0.5, 3).eval(), torch.randn(2, 7, 6)
    rest = module(x)
    assert torch.equal(module(x), rest)
    module.dropout.train()
    assert not torch.equal(module(x), module(x))
    module.train().dropout.eval()
    assert torch.equal(module(x), rest)
    module.dropout = nn.Identity()
    assert torch.equal(module(x), rest)


@pytest.mark.filterwarnings("ignore:torch.*quantiz")  # they are deprecated
def test_dynamic_quantization_runs():
    module, x = MultiHeadAttention(64, 64, 16, 0.0, 4).eval(), torch.randn(2, 5, 64)
    quantize = torch.ao.quantization.quantize_dynamic
    small = quantize(nn.Sequential(module), {nn.Linear}, dtype=torch.qint8)[0]
    assert (small(x) - module(x)).abs().max() < 0.05
    weights = small.attention_weights(x)
    assert (weights - module.attention_weights(x)).abs().max() < 0.05


@pytest.mark.parametrize("kind", [MultiHeadAttention, StackedHeads])
def test_the_map_of_a_module_is_that_of_the_form_handed_in(kind):
    form = partial(attend, scale=5.0)
    module, x = kind(3, 10, 11, 0.0, 5, attend=form), torch.randn(2, 7, 3)
    parts = module.heads if kind is StackedHeads else [module]
    values = [part._inputs(x)[2] for part in parts]
    values = torch.stack(values, dim=-3) if kind is StackedHeads else values[0]
    shown = (module.attention_weights(x) @ values).transpose(-3, -2).flatten(-2)
    shown = shown if kind is StackedHeads else module.out_proj(shown)
    torch.testing.assert_close(shown, module(x))

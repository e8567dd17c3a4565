"""What must stay true of `attention.memory.grouped_query`."""

from functools import partial

import pytest
import torch
from examples import said
from torch import nn

from attention import Attention, MultiHeadAttention, QKNorm, Rotary, attend, window
from attention.memory.grouped_query import mean_head, pool_heads


def trained(num_kv_heads=6, **slots):
    """A layer of six heads of queries, and two texts of five tokens."""
    layer = Attention(7, 11, 6, num_kv_heads=num_kv_heads, head_dim=4, **slots)
    return layer.requires_grad_(False), torch.randn(2, 5, 7)


# Who reads what (Ainslie et al. 2023, section 2.2)

BY_NEIGHBOURS = [0.5202, -0.3940, 0.7359, -0.5736, 1.1125, 0.0681, 1.2973, 1.0814]
DEALT = [0.5202, -0.3940, 1.3860, 1.5681, 0.0718, -0.0207, 1.2973, 1.0814]


def of_seed_0():
    torch.manual_seed(0)
    return torch.randn(4, 2, 2), *torch.randn(2, 2, 2, 2)


def test_neighbours_share_a_key_head():
    context = attend(*of_seed_0(), causal=True)[:, 1]
    must = torch.tensor(BY_NEIGHBOURS)
    torch.testing.assert_close(context.flatten(), must, rtol=0, atol=5e-5)  # 4 digits


def test_key_heads_dealt_like_cards_are_told_apart_in_the_middle_alone():
    """The bug of many programs: `repeat` in the place of `repeat_interleave`."""
    queries, keys, values = of_seed_0()
    keys, values = (t.repeat(2, 1, 1) for t in (keys, values))
    wrong = attend(queries, keys, values, causal=True)[:, 1]
    torch.testing.assert_close(
        wrong.flatten(),
        torch.tensor(DEALT),
        rtol=0,
        atol=5e-5,  # printed with 4 digits
    )
    right = torch.tensor(BY_NEIGHBOURS).view(4, 2)
    same = [torch.allclose(*pair, atol=5e-5) for pair in zip(wrong, right, strict=True)]
    assert same == [True, False, False, True]


@pytest.mark.parametrize("num_kv_heads", [1, 2, 3, 6])
def test_a_grouped_layer_is_one_of_many_heads_that_are_alike_in_groups(num_kv_heads):
    few, x = trained(num_kv_heads, process_heads=Rotary(4), qkv_bias=True)
    many, _ = trained(process_heads=Rotary(4), qkv_bias=True)
    state = few.state_dict()
    for name in state:
        if name.startswith(("W_key", "W_value")):
            heads = state[name].unflatten(0, (num_kv_heads, 4))
            alike = heads.repeat_interleave(6 // num_kv_heads, dim=0)
            state[name] = alike.flatten(0, 1)
    many.load_state_dict(state)
    torch.testing.assert_close(many(x), few(x))
    torch.testing.assert_close(pool_heads(many, num_kv_heads)(x), few(x))


# Converting


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize(("before", "after"), [(6, 2), (6, 3), (6, 1), (3, 1), (2, 2)])
def test_each_head_is_the_mean_of_neighbours(before, after, qkv_bias):
    layer, x = trained(before, qkv_bias=qkv_bias)
    pooled = pool_heads(layer, after)
    assert (pooled.num_heads, pooled.num_kv_heads) == (6, after)
    members = before // after
    for name in ("W_key", "W_value"):
        old, new = (getattr(each, name)(x) for each in (layer, pooled))
        assert getattr(pooled, name).out_features == 4 * after == new.shape[-1]
        for head in range(after):
            group = old[..., 4 * members * head :][..., : 4 * members]
            mean = sum(group.split(4, dim=-1)) / members
            torch.testing.assert_close(new[..., 4 * head :][..., :4], mean)
    assert pooled(x).shape == (2, 5, 11)


def test_nothing_else_is_changed_and_nothing_is_shared():
    slots = {"process_heads": Rotary(4), "masks": (window(3),), "dropout": 0.5}
    layer, _ = trained(**slots, attend=partial(attend, scale=0.3), out_bias=False)
    layer.context_length = 13
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    pooled = pool_heads(layer.eval(), 2)
    for name in ("W_query", "out_proj"):
        ours, theirs = getattr(pooled, name).weight, getattr(layer, name).weight
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
    assert pooled.context_length == 13
    assert [mask.keywords for mask in pooled.masks] == [{"size": 3}]
    assert pooled.attend.keywords == {"scale": 0.3}
    assert not pooled.training
    assert pooled.dropout.p == 0.5
    for parameter in pooled.parameters():
        parameter.zero_()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_conversion_draws_no_random_numbers():
    layer, _ = trained()
    state = torch.get_rng_state()
    pool_heads(layer, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_mean_of_turned_heads_is_the_turned_mean():
    layer, x = trained(process_heads=Rotary(4))
    places = torch.arange(5)
    keys = layer._heads(x, places)[1].unflatten(1, (3, 2)).mean(dim=2)
    torch.testing.assert_close(pool_heads(layer, 3)._heads(x, places)[1], keys)


@pytest.mark.parametrize("asks", [True, False])
def test_a_parameter_is_trained_afterwards_if_it_was_before(asks):
    layer, x = trained(qkv_bias=True, process_heads=QKNorm(4))
    pooled = pool_heads(layer.requires_grad_(asks), 2)
    assert {parameter.requires_grad for parameter in pooled.parameters()} == {asks}
    assert {parameter.is_leaf for parameter in pooled.parameters()} == {True}
    if asks:
        pooled(x).square().sum().backward()
        assert pooled.W_key.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_mean_has_the_dtype_of_the_heads_and_is_rounded_once(dtype):
    heads = (1000 * torch.randn(3, 70, 2, 5)).to(dtype)
    exact = heads.double().mean(dim=1)
    torch.testing.assert_close(mean_head(heads), exact.to(dtype))
    assert mean_head(torch.full((1, 70, 2), 6e4).half()).isfinite().all()


def test_a_large_layer_is_converted_without_its_numbers():
    with torch.device("meta"):
        large = Attention(4096, 4096, 32)
    assert pool_heads(large, 8).W_key.weight.shape == (1024, 4096)


def test_another_way_to_make_one_head_of_several_is_handed_in():
    layer, _ = trained(qkv_bias=True)
    pooled = pool_heads(layer, 2, pool=lambda heads: heads[:, 0])
    rows = torch.tensor([0, 1, 2, 3, 12, 13, 14, 15])
    assert torch.equal(pooled.W_key.weight, layer.W_key.weight[rows])
    assert torch.equal(pooled.W_value.bias, layer.W_value.bias[rows])


# Refused


@pytest.mark.parametrize("count", [4, 5, 12])
def test_groups_of_different_sizes_are_refused(count):
    with pytest.raises(ValueError, match=said("num_kv_heads", "divisor", 6, count)):
        pool_heads(trained()[0], count)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None])
def test_a_number_of_heads_is_a_whole_number(count, as_importer):
    with pytest.raises(ValueError, match=said("num_kv_heads", "whole number", count)):
        pool_heads(trained()[0], count)


def test_a_layer_of_another_class_is_refused(as_importer):
    other = MultiHeadAttention(8, 8, 5, 0.0, 4)
    with pytest.raises(ValueError, match=said("layer", "MultiHeadAttention")):
        pool_heads(other, 2)


def test_a_layer_whose_rows_are_not_plain_is_refused():
    layer, _ = trained()
    nn.utils.parametrizations.weight_norm(layer.W_value)
    with pytest.raises(ValueError, match=said("W_value", "nn.Linear", "got")):
        pool_heads(layer, 2)


UNFIT = {
    "one number": lambda heads: heads.mean(),
    "over the groups": lambda heads: heads.mean(dim=0),
    "another dtype": lambda heads: heads.mean(dim=1).double(),
    "another device": lambda heads: heads.mean(dim=1).to("meta"),
}


@pytest.mark.parametrize("pool", UNFIT.values(), ids=UNFIT)
def test_a_way_that_gives_no_head_for_each_group_is_refused(pool, as_importer):
    with pytest.raises(ValueError, match=said("pool", "expected", "(2, 4, 7)", "got")):
        pool_heads(trained()[0], 2, pool=pool)


def test_a_way_that_gives_no_tensor_is_refused(as_importer):
    with pytest.raises(TypeError, match=said("pool", "torch.Tensor", "list")):
        pool_heads(trained()[0], 2, pool=lambda heads: heads.tolist())

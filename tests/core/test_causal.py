"""Causal attention: what is hidden, what leaks, and what a checkpoint may hold."""

import copy
import pickle

import pytest
import torch
from examples import said
from torch import nn

from attention import CausalAttention, SelfAttention, causal_mask, future_leak


def some_module(**options):
    return CausalAttention(3, 5, context_length=11, **options), torch.randn(2, 7, 3)


def test_the_mask_is_true_from_the_first_key_to_the_query_itself():
    mask = causal_mask(5)
    assert all(mask[i, j] == (j <= i) for i in range(5) for j in range(5))


def test_the_last_queries_of_a_longer_sequence_see_all_that_came_before():
    assert torch.equal(causal_mask(2, 5), causal_mask(5)[-2:])


def test_a_mask_may_be_empty():
    assert causal_mask(0).shape == (0, 0)
    assert causal_mask(0, 3).shape == (0, 3)


def test_a_mask_is_made_where_it_is_asked_for():
    assert causal_mask(3, device="meta").device.type == "meta"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((7, 5), said("length", "num_keys=5", "got 7")),
        ((-1,), said("num_keys", "got -1")),
    ],
)
def test_more_queries_than_keys_have_no_causal_mask(as_importer, sizes, message):
    with pytest.raises(ValueError, match=message):
        causal_mask(*sizes)


def test_the_detector_finds_a_leak_at_every_distance():
    x = torch.randn(7, 3)
    for distance in range(1, 7):
        assert future_leak(lambda x, d=distance: x.roll(-d, dims=0), x) > 0


@pytest.mark.parametrize(("hears", "heard"), [(0, 6), (0, 1), (3, 4), (5, 6)])
def test_the_detector_finds_a_leak_between_any_two_tokens(hears, heard):
    def leaky(x):
        context = x.clone()
        context[..., hears, :] += 1e-3 * x[..., heard, :]
        return context

    assert future_leak(leaky, torch.randn(7, 3)) > 0


def test_two_tokens_have_a_future_to_leak():
    assert future_leak(lambda x: x.flip(0), torch.randn(2, 3)) > 0


def test_the_detector_is_silent_where_nothing_leaks():
    assert future_leak(lambda x: x.cumsum(dim=-2), torch.randn(2, 7, 3)) == 0


def test_the_detector_does_not_hide_a_nan():
    leak = future_leak(lambda x: x * torch.nan, torch.randn(7, 3))
    assert leak != leak


def test_the_detector_leaves_its_input_alone():
    x = torch.randn(7, 3)
    before = x.clone()
    future_leak(lambda x: x, x)
    assert torch.equal(x, before)


def test_one_position_has_no_future(as_importer):
    with pytest.raises(ValueError, match=said("x", "length of at least 2", "(1, 3)")):
        future_leak(lambda x: x, torch.randn(1, 3))


def test_the_module_does_not_leak():
    module, x = some_module()
    assert future_leak(module, x) == 0


def test_self_attention_leaks_so_the_detector_can_see():
    assert future_leak(SelfAttention(3, 5), torch.randn(2, 7, 3)) > 0.01


def test_the_module_equals_pytorchs_causal_attention():
    module, x = CausalAttention(5, 5, 11, qkv_bias=True), torch.randn(2, 7, 5)
    peer = nn.MultiheadAttention(5, 1, batch_first=True)
    layers = (module.W_query, module.W_key, module.W_value)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        peer.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        peer.out_proj.weight.copy_(torch.eye(5))
        peer.out_proj.bias.zero_()
    forbidden = ~causal_mask(7)  # the other polarity
    context, weights = peer(x, x, x, attn_mask=forbidden)
    torch.testing.assert_close(module(x), context)
    torch.testing.assert_close(module.attention_weights(x), weights)


def test_the_weights_of_a_module_are_those_it_uses():
    module, x = some_module()
    context = module.attention_weights(x) @ module.W_value(x)
    torch.testing.assert_close(module(x), context)


def test_a_mask_hides_even_more():
    module, x = some_module()
    mask = torch.ones(7, 7, dtype=torch.bool)
    mask[:, 2] = False
    weights = module.attention_weights(x, mask)
    assert (weights[..., 2] == 0).all()
    assert (weights.triu(1) == 0).all()
    torch.testing.assert_close(module(x, mask), weights @ module.W_value(x))


def test_a_prefix_gets_what_it_gets_in_the_whole():
    module, x = some_module()
    torch.testing.assert_close(module(x[:, :3]), module(x)[:, :3])


def test_dropout_acts_in_training_only():
    module, x = some_module(dropout=0.5)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))
    torch.testing.assert_close(
        module(x), module.attention_weights(x) @ module.W_value(x)
    )


def test_a_checkpoint_of_the_companion_loads_and_its_mask_is_not_believed():
    module, x = some_module()
    checkpoint = SelfAttention(3, 5).state_dict()
    checkpoint["mask"] = torch.triu(torch.ones(11, 11), diagonal=1)
    module.load_state_dict(checkpoint, strict=True)
    assert torch.equal(module.W_key.weight, checkpoint["W_key.weight"])
    assert future_leak(module, x) == 0
    assert "mask" in checkpoint


def test_any_other_stray_entry_of_a_checkpoint_is_an_error():
    module, _ = some_module()
    checkpoint = module.state_dict() | {"masks": torch.ones(3)}
    with pytest.raises(RuntimeError, match=r"Unexpected key.*masks"):
        module.load_state_dict(checkpoint)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_computes_the_same_and_still_loads_checkpoints(copied):
    module, x = some_module()
    twin = copied(module)
    torch.testing.assert_close(twin(x), module(x))
    twin.load_state_dict(module.state_dict() | {"mask": torch.ones(11, 11)})


@pytest.mark.parametrize("length", [1, 11])
def test_lengths_up_to_the_context_length_are_welcome(length):
    module, _ = some_module()
    assert module(torch.randn(2, length, 3)).shape == (2, length, 5)


def test_a_longer_sequence_is_refused(as_importer):
    module, _ = some_module()
    for use in (module, module.attention_weights):
        with pytest.raises(
            ValueError, match=said("x", "context_length=11", "got length 12")
        ):
            use(torch.randn(2, 12, 3))


@pytest.mark.parametrize("context_length", [0, -3, 2.0])
def test_the_context_length_is_whole_and_positive(as_importer, context_length):
    with pytest.raises(
        ValueError,
        match=said("context_length", "a whole number", "got", context_length),
    ):
        CausalAttention(3, 5, context_length)


def test_dropout_is_a_probability(as_importer):
    with pytest.raises(ValueError, match="dropout: expected a probability from 0 to 1"):
        CausalAttention(3, 5, 11, dropout=1.5)


# What the detector must see, and what it must leave alone


@pytest.mark.parametrize("seed", range(5))
def test_an_input_that_is_some_seeds_noise_hides_no_leak(seed):
    torch.manual_seed(seed)
    x = torch.randn(2, 7, 3)
    assert future_leak(lambda t: t.flip(-2), x) > 0.1


@pytest.mark.parametrize("number", [0.0, 1.0, -1.0, 1 / 3, 1e-30, 1e30])
def test_an_input_of_equal_numbers_hides_no_leak(number):
    x = torch.full((2, 5, 3), number)
    assert future_leak(lambda t: t.roll(-1, -2), x) > 0.1


LEAKS = {
    "the next": lambda t: t.roll(-1, -2),
    "the last": lambda t: t + t[..., -1:, :],
    "a size": lambda t: t + t.abs().mean(dim=-2, keepdim=True),
    "a difference": lambda t: t + t.diff(dim=-2).abs().sum(dim=-2, keepdim=True),
    "the largest": lambda t: t + t.amax(dim=-2, keepdim=True),
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
def test_each_way_to_read_the_future_is_seen(leak):
    assert future_leak(leak, torch.randn(2, 5, 3)) > 1e-3


def test_a_mechanism_that_writes_into_one_buffer_is_not_believed():
    buffer = torch.empty(2, 7, 3)
    assert future_leak(lambda t: buffer.copy_(t.flip(-2)), torch.randn(2, 7, 3)) > 0.1


def test_a_mechanism_that_works_in_place_is_not_accused():
    x = torch.randn(2, 7, 3)
    before = x.clone()
    assert future_leak(lambda t: t.mul_(2).cumsum(-2), x) < 1e-5
    assert torch.equal(x, before)


def test_the_detector_draws_no_random_number():
    state = torch.get_rng_state()
    future_leak(lambda t: t, torch.randn(2, 7, 3, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch_has_no_leak():
    assert future_leak(lambda t: t, torch.randn(0, 7, 3)) == 0

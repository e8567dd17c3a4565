"""Rotary positions: numbers of the papers, distances alone, pairings, the layer."""

import copy
import math
import pickle

import pytest
import torch
from examples import TRACERS, in_pieces, said

from attention import (
    GPT,
    Attention,
    LatentAttention,
    LearnedPositions,
    alibi,
    causal,
    document_mask,
    future_leak,
    padding_mask,
    prefix,
    window,
    window_and_sinks,
)
from attention.position.rotary import (
    ProcessHeads,
    ProportionalScaling,
    QKNorm,
    Rotary,
    convert_pairing,
    rotary_frequencies,
    rotate,
)

both = pytest.mark.parametrize("interleaved", [False, True])


def matrix(head_dim, position, base=1e4, interleaved=False, rotary_dim=None):
    """The turn as a matrix, by the formula: Su et al. 2021, eq. 15."""
    width = head_dim if rotary_dim is None else rotary_dim
    turn = torch.eye(head_dim, dtype=torch.float64)
    for pair in range(width // 2):
        angle = position * base ** (-2 * pair / width)
        a, b = (pair, pair + width // 2)
        if interleaved:
            a, b = 2 * pair, 2 * pair + 1
        turn[a, a] = turn[b, b] = math.cos(angle)
        turn[b, a], turn[a, b] = math.sin(angle), -math.sin(angle)
    return turn


def some_heads(head_dim=6, length=7, dtype=torch.float64):
    queries = torch.randn(2, 3, length, head_dim, dtype=dtype)
    return queries, torch.randn(2, 1, length, head_dim, dtype=dtype)


# Numbers of the papers


@both
def test_the_score_of_two_arrows_is_that_of_the_paper(interleaved):
    """Su et al. 2021, eq. 16; both pairs of positions are three steps apart."""
    queries = torch.tensor([[1.0, 2, 3, 4]]).expand(9, 4)
    keys = torch.tensor([[4.0, 3, 2, 1]]).expand(9, 4)
    rotary = Rotary(4, interleaved=interleaved)
    queries, keys = rotary(queries, keys, torch.arange(9))
    must = torch.tensor(-0.76 if interleaved else -1.6156)
    for m, n in ((5, 2), (8, 5)):
        torch.testing.assert_close(queries[m] @ keys[n], must, rtol=0, atol=1e-4)


def test_the_two_kinds_of_partial_rotation_turn_other_numbers_at_other_speeds():
    head, place = torch.arange(1.0, 17)[None], torch.tensor([3])
    cut, _ = Rotary(16, rotary_dim=4)(head, head, place)
    stopped, _ = Rotary(16, scaling=ProportionalScaling(0.25))(head, head, place)
    must = head.repeat(2, 1)
    must[0, :4] = torch.tensor([-1.4134, 1.8791, -2.8289, 4.0582])
    must[1, [0, 1, 8, 9]] = torch.tensor([-2.2601, -6.9610, -8.7688, 7.4528])
    got = torch.cat([cut, stopped])
    torch.testing.assert_close(got, must, rtol=0, atol=1e-4)


@both
@pytest.mark.parametrize("rotary_dim", [None, 2, 4])
@pytest.mark.parametrize("base", [1e4, 5e5])
def test_a_turn_is_the_matrix_of_the_formula(interleaved, rotary_dim, base):
    """The index of a pair starts at 0, and its exponent is over what turns."""
    queries, keys = some_heads()
    options = {"base": base, "interleaved": interleaved, "rotary_dim": rotary_dim}
    turned = Rotary(6, **options)(queries, keys, torch.arange(7))
    turns = torch.stack([matrix(6, position, **options) for position in range(7)])
    for heads, got in zip((queries, keys), turned, strict=True):
        must = torch.einsum("lab,...lb->...la", turns, heads)
        torch.testing.assert_close(got, must)


# What a turn leaves as it is


@both
def test_the_score_depends_on_the_distance_alone(interleaved):
    queries, keys = some_heads()
    rotary = Rotary(6, interleaved=interleaved)
    places, scores = torch.arange(7), []
    for start in (0, 1, 13, 100_003):
        turned = rotary(queries, keys, places + start)
        scores.append(turned[0] @ turned[1].mT)
    for moved in scores[1:]:
        torch.testing.assert_close(moved, scores[0], rtol=1e-6, atol=1e-8)  # 1e5 turns
    assert not torch.allclose(scores[0], queries @ keys.mT)


@both
def test_lengths_stay_and_position_0_changes_nothing(interleaved):
    queries, keys = some_heads()
    turned, _ = Rotary(6, interleaved=interleaved)(queries, keys, torch.arange(7))
    torch.testing.assert_close(turned.norm(dim=-1), queries.norm(dim=-1))
    assert torch.equal(turned[..., 0, :], queries[..., 0, :])


@both
def test_one_row_of_angles_turns_all_tokens_alike(interleaved):
    heads, angles = torch.randn(2, 3, 5, 8), torch.randn(4)
    alike = rotate(heads, angles, interleaved=interleaved)
    assert torch.equal(alike, rotate(heads, angles[None], interleaved=interleaved))


def test_a_scaling_may_give_speeds_with_axes_of_size_one():
    def scaling(rotary_dim, base, positions):
        return rotary_frequencies(rotary_dim, base=base)[None]

    heads, places = torch.randn(2, 2, 3, 5, 8), torch.arange(5)
    for given, plain in zip(
        Rotary(8, scaling=scaling)(*heads, places),
        Rotary(8)(*heads, places),
        strict=True,
    ):
        assert torch.equal(given, plain)


def test_turning_back_by_the_same_angles_undoes_it():
    heads, angles = torch.randn(2, 3, 7, 6), torch.randn(7, 2)
    back = rotate(rotate(heads, angles), -angles)
    torch.testing.assert_close(back, heads)


def test_what_is_given_stays_as_it_is():
    queries, keys = some_heads()
    given = queries.clone(), keys.clone()
    Rotary(6, rotary_dim=2)(queries, keys, torch.arange(7))
    assert torch.equal(queries, given[0])
    assert torch.equal(keys, given[1])


# Pairings


@pytest.mark.parametrize("rotary_dim", [None, 4])
@both
def test_converted_rows_give_the_same_layer_with_the_other_pairing(
    interleaved, rotary_dim
):
    def layer(pairing):
        rotary = Rotary(10, interleaved=pairing, rotary_dim=rotary_dim)
        options = {"num_kv_heads": 2, "head_dim": 10, "qkv_bias": True}
        return Attention(5, 7, 6, process_heads=rotary, **options).double()

    old, new = layer(not interleaved), layer(interleaved)
    state = old.state_dict()
    for name in ("W_query.weight", "W_query.bias", "W_key.weight", "W_key.bias"):
        options = {"interleaved": interleaved, "rotary_dim": rotary_dim}
        state[name] = convert_pairing(state[name], 10, **options)
    x = torch.randn(2, 11, 5, dtype=torch.float64)
    new.load_state_dict(old.state_dict())
    assert not torch.allclose(new(x), old(x))  # the rows as they were
    new.load_state_dict(state)
    torch.testing.assert_close(new(x), old(x))


@pytest.mark.parametrize("rotary_dim", [None, 2, 6])
def test_a_conversion_is_undone_by_the_other(rotary_dim):
    rows = torch.randn(30, 7)
    there = convert_pairing(rows, 10, interleaved=True, rotary_dim=rotary_dim)
    back = convert_pairing(there, 10, interleaved=False, rotary_dim=rotary_dim)
    assert torch.equal(back, rows)


def test_a_short_text_hardly_tells_the_pairings_apart_and_a_long_one_does():
    queries, keys = torch.randn(2, 500, 1, 128)

    def error(distance):
        scores = []
        for interleaved in (False, True):
            rotary = Rotary(128, interleaved=interleaved)
            turned, _ = rotary(queries, queries, torch.tensor([distance]))
            scores.append((turned * keys).sum(dim=-1))
        return (scores[0] - scores[1]).std() / scores[0].std()

    assert error(0) == 0
    assert error(1) < 0.5 < error(1000)


# In the layer


FILLS = {
    "rotary": Rotary(4),
    "interleaved": Rotary(4, interleaved=True),
    "partial": Rotary(4, rotary_dim=2),
    "proportional": Rotary(4, scaling=ProportionalScaling(0.5)),
    "normed": ProcessHeads(QKNorm(4), Rotary(4)),
}
every = pytest.mark.parametrize("process", FILLS.values(), ids=FILLS.keys())


def some_layer(process, **slots):
    """A layer whose six heads share two of keys, and two texts of eleven tokens."""
    options = {"num_kv_heads": 2, "head_dim": 4, "process_heads": process}
    layer = Attention(5, 7, 6, **options, **slots).double()
    return layer.requires_grad_(False), torch.randn(2, 11, 5, dtype=torch.float64)


@every
@pytest.mark.parametrize("slots", [{}, {"masks": (window(3),)}])
@pytest.mark.parametrize("ends", [[1], [5, 6], list(range(1, 11))])
def test_in_pieces_equals_the_whole(process, slots, ends):
    layer, x = some_layer(process, **slots)
    torch.testing.assert_close(in_pieces(layer, x, ends), layer(x))


@every
def test_nothing_leaks_and_weights_are_those_that_are_used(process):
    layer, x = some_layer(process)
    assert future_leak(layer, x) == 0
    values = layer.W_value(x).unflatten(-1, (2, 4)).transpose(1, 2)
    heads = layer.attention_weights(x) @ values.repeat_interleave(3, dim=1)
    joined = heads.transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.out_proj(joined), layer(x))


@every
def test_a_text_that_is_padded_on_the_left_is_read_as_if_alone(process):
    layer, x = some_layer(process)
    real = torch.ones(2, 11, dtype=torch.bool)
    real[0, :4] = False
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    got = layer(x, real[:, None, None], positions=positions)
    torch.testing.assert_close(got[0, 4:], layer(x[0, 4:]))
    torch.testing.assert_close(got[1], layer(x[1]))
    gap = positions.clone()
    gap[1, 6:] += 3  # steps too many inside a text do harm
    assert not torch.allclose(layer(x, real[:, None, None], positions=gap)[1], got[1])


def test_positions_may_differ_from_text_to_text():
    queries, keys = some_heads()
    rows = torch.stack([torch.arange(7), torch.arange(7) + 5])
    together = Rotary(6)(queries, keys, rows)
    for number, row in enumerate(rows):
        alone = Rotary(6)(queries[number], keys[number], row)
        for got, must in zip(together, alone, strict=True):
            torch.testing.assert_close(got[number], must)


# Numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("start", [0, 257, 1_000_003])
def test_a_turn_is_exact_at_every_position_and_rounded_once(dtype, start):
    queries, keys = some_heads(16, dtype=dtype)
    places = torch.arange(7) + start
    got, _ = Rotary(16)(queries, keys, places)
    exact, _ = Rotary(16)(queries.double(), keys.double(), places)
    assert got.dtype == dtype
    sums = queries.double().norm(dim=-1, keepdim=True) * 2**-22  # float32's roundings
    last = exact.abs() * torch.finfo(dtype).eps / 2 + 2**-25  # and one of the dtype
    assert ((got.double() - exact).abs() <= sums + last).all()


def test_a_model_of_another_dtype_keeps_its_frequencies():
    rotary = Rotary(16)
    assert not list(rotary.state_dict())
    must = Rotary(16).angles(torch.arange(7))
    for other in (rotary.to(torch.bfloat16), rotary.half()):
        assert torch.equal(other.angles(torch.arange(7)), must)


def test_frequencies_are_float64_and_go_down_from_1():
    frequencies = rotary_frequencies(128, base=5e5)
    assert frequencies.dtype == torch.float64
    assert frequencies[0] == 1
    assert (frequencies.diff() < 0).all()
    assert math.isclose(frequencies[32], 5e5**-0.5)


@pytest.mark.parametrize("tracer", TRACERS)
def test_a_layer_with_rotary_positions_is_traced(as_importer, tracer):
    layer, x = some_layer(ProcessHeads(QKNorm(4), Rotary(4, rotary_dim=2)))
    torch.testing.assert_close(TRACERS[tracer](layer, x)(x), layer(x))


@every
def test_it_is_copied_and_pickled(process):
    heads = some_heads(4, dtype=torch.float32)
    must = process(*heads, torch.arange(7))
    for other in (copy.deepcopy(process), pickle.loads(pickle.dumps(process))):
        got = other(*heads, torch.arange(7))
        torch.testing.assert_close(got, must)


def test_gradients_are_turned_back():
    queries, keys = some_heads()
    queries.requires_grad_()
    turned, _ = Rotary(6)(queries, keys, torch.arange(7))
    pull = torch.randn_like(turned)
    turned.backward(pull)
    back = rotate(pull, -Rotary(6).angles(torch.arange(7)))
    torch.testing.assert_close(queries.grad, back)


def test_no_token_at_all_is_turned_to_none():
    queries, keys = some_heads(length=0)
    turned, _ = Rotary(6)(queries, keys, torch.arange(0))
    assert turned.shape == (2, 3, 0, 6)


# QK-norm


def test_heads_are_normed_one_by_one_with_weights_that_all_heads_share():
    norm = QKNorm(2)
    queries = torch.tensor([[[3.0, 4]], [[0, 1]]])  # two heads, one token
    got, _ = norm(queries, queries, torch.arange(1))
    must = torch.tensor([0.8485, 1.1314, 0.0, 1.4142])
    torch.testing.assert_close(got.flatten(), must, rtol=0, atol=1e-4)
    names = {name: p.shape for name, p in norm.named_parameters()}
    assert names == {"query_weight": (2,), "key_weight": (2,)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_squares_are_taken_in_float32(dtype):
    """300² is more than a float16 can hold."""
    queries = 300 * torch.randn(2, 3, 7, 8).to(dtype)
    got, _ = QKNorm(8).to(dtype)(queries, queries, torch.arange(7))
    must, _ = QKNorm(8)(queries.float(), queries.float(), torch.arange(7))
    assert got.dtype == dtype
    torch.testing.assert_close(got, must.to(dtype))


def test_after_trained_weights_only_the_norm_before_the_turn_knows_distances_alone():
    norm, rotary = QKNorm(6).double(), Rotary(6)
    torch.nn.init.uniform_(norm.query_weight, 0.5, 2)
    heads = torch.randn(2, 1, 6, dtype=torch.float64).expand(2, 7, 6)

    def known(*steps):
        queries, keys = ProcessHeads(*steps)(*heads, torch.arange(7))
        diagonal = (queries @ keys.T).diagonal(-2)
        return torch.allclose(diagonal, diagonal[:1].expand_as(diagonal))

    assert known(norm, rotary)
    assert not known(rotary, norm)


def test_a_chain_trains_its_modules_and_calls_functions_too():
    def louder(queries, keys, positions):
        return 2 * queries, keys

    chain = ProcessHeads(QKNorm(6), louder, Rotary(6))
    assert len(list(chain.parameters())) == 2
    heads = some_heads(dtype=torch.float32)
    must = ProcessHeads(QKNorm(6), Rotary(6))(*heads, torch.arange(7))
    got = chain(*heads, torch.arange(7))
    torch.testing.assert_close(got, (2 * must[0], must[1]))


# What is refused: the sentences stand in tests/wrong_calls.txt


@pytest.mark.parametrize("heads", [None, [[1.0, 2.0]]])
def test_what_is_no_tensor_is_a_type_error(as_importer, heads):
    with pytest.raises(TypeError, match="queries"):
        Rotary(2)(heads, heads, torch.arange(1))


def test_positions_of_another_dtype_are_refused(as_importer):
    """Half of the positions above 256 cannot be written in bfloat16."""
    heads, places = torch.randn(2, 3, 7, 6), torch.arange(7.0)
    for dtype in (torch.bfloat16, torch.float32):
        with pytest.raises(ValueError, match=said("positions", "whole numbers", dtype)):
            Rotary(6)(heads, heads, places.to(dtype))


def test_positions_by_head_are_refused():
    heads = torch.randn(3, 5, 6)  # three heads, no batch
    with pytest.raises(ValueError, match=said("positions", "(5,)", "got (3, 5)")):
        Rotary(6)(heads, heads, torch.ones(3, 5, dtype=torch.int64))


def test_lists_are_no_heads_and_no_angles(as_importer):
    with pytest.raises(TypeError, match=said("heads", "Tensor", "list")):
        rotate([[1.0, 2.0]], torch.randn(1))
    with pytest.raises(TypeError, match=said("angles", "Tensor", "list")):
        rotate(torch.randn(1, 2), [1.0])


def test_the_factor_of_the_proportional_kind_divides_what_turns():
    plain = ProportionalScaling(0.5)(8, 1e4, torch.arange(5))
    slowed = ProportionalScaling(0.5, factor=4)(8, 1e4, torch.arange(5))
    assert torch.equal(slowed, plain / 4)
    assert plain.tolist() == [1.0, 0.1, 0.0, 0.0]


def test_a_query_of_zeros_stays_one():
    heads, places = torch.zeros(2, 1, 3, 6), torch.arange(3)
    assert all((given == 0).all() for given in QKNorm(6)(*heads, places))


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf"), "1e-6", None])
def test_an_eps_that_would_make_nans_is_refused(eps, as_importer):
    with pytest.raises(ValueError, match=said("eps", "at least 0", "got", eps)):
        QKNorm(8, eps=eps)


WHOLE = [torch.int8, torch.int16, torch.int32, torch.int64]
WHOLE += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
PLACED = {  # each calls something with the positions 0, 3 and 100 of three tokens
    "rotary": lambda at: Rotary(6)(HEADS, HEADS, at),
    "norm": lambda at: QKNorm(6)(HEADS, HEADS, at),
    "learned": lambda at: PLACES(HEADS, at),
    "a layer": lambda at: LAYER(HEADS, positions=at),
    "its weights": lambda at: LAYER.attention_weights(HEADS, positions=at),
    "a latent layer": lambda at: LATENT(HEADS, positions=at),
    "a model": lambda at: MODEL(THREE, positions=at),
    "ALiBi": lambda at: alibi(2)(at, at),
    "window": lambda at: window(3)(at, at),
    "causal": lambda at: causal(at, THREE),
    "prefix": lambda at: prefix(2)(THREE, at),
    "sinks": lambda at: window_and_sinks(3, 2)(at, THREE),
    "padding": lambda at: padding_mask(at, 100),
    "documents": lambda at: document_mask(at[None]),
}
THREE = torch.tensor([0, 3, 100])
HEADS, LAYER = torch.randn(2, 3, 6), Attention(6, 6, 1, process_heads=Rotary(6))
PLACES = LearnedPositions(101, 6)
LATENT = LatentAttention(6, 6, 1, latent_dim=4, rotary_dim=2, head_dim=4)
MODEL = GPT(101, d=8, num_heads=2, num_blocks=1)


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("dtype", WHOLE, ids=str)
def test_positions_may_be_whole_numbers_of_any_kind(name, dtype):
    positions = torch.tensor([0, 3, 100])
    got = PLACED[name](positions.to(dtype))
    torch.testing.assert_close(got, PLACED[name](positions))


@pytest.mark.parametrize("share", [0, 1.5, float("nan"), "half"])
def test_a_share_that_is_none_is_refused(share, as_importer):
    with pytest.raises(ValueError, match=said("share", "above 0", "got", share)):
        ProportionalScaling(share)

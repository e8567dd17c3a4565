"""Scalings of rotary positions: numbers of the papers, and what each leaves alone."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from examples import in_pieces, said

from attention import Attention, attend, window
from attention.position.longer import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    MultimodalRotary,
    NTKScaling,
    YaRN,
    ntk_base,
    picture_places,
    yarn_factor,
)
from attention.position.rotary import ProcessHeads, QKNorm, Rotary, rotary_frequencies

NARROW = [torch.uint8, torch.int8, torch.int16, torch.uint16]


def close(got, must):
    """To the four decimals that are written down."""
    got, must = (torch.as_tensor(each, dtype=torch.float64) for each in (got, must))
    torch.testing.assert_close(got, must, rtol=0, atol=5.1e-5)


# Numbers of the papers


def test_linear_puts_position_8_where_position_2_was():
    head = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    got, _ = Rotary(4, scaling=LinearScaling(4))(head, head, torch.tensor([8]))
    close(got[0], [-3.1440, 1.9196, -0.3391, 4.0392])
    got, _ = Rotary(4)(head, head, torch.tensor([8]))
    close(got[0], [-3.1136, 1.6739, 0.5529, 4.1470])


def test_ntk_multiplies_the_base_by_a_power_of_the_factor():
    bases = [ntk_base(1e4, factor, 128) for factor in (2, 4, 8)]
    close(bases, [20221.2617, 40889.9424, 82684.6226])
    for factor, base in zip((2, 4, 8), bases, strict=True):
        got = rotary_frequencies(128, scaling=NTKScaling(factor))
        torch.testing.assert_close(got, rotary_frequencies(128, base=base))


@pytest.mark.parametrize("width", [4, 6, 128])
def test_ntk_leaves_the_fastest_pair_and_slows_the_slowest_by_the_factor(width):
    ntk = NTKScaling(5)
    ratio = rotary_frequencies(width) / rotary_frequencies(width, scaling=ntk)
    torch.testing.assert_close(ratio[[0, -1]], torch.tensor([1.0, 5.0]).double())


def test_yarn_of_llama():
    """Peng et al. 2023, eq. 17 to 23."""
    yarn = YaRN(16, 4096)
    assert yarn.ramp(128, 1e4) == (20, 46)
    speeds = rotary_frequencies(128, scaling=yarn)[[0, 20, 30, 40, 46, 63]]
    close(1e3 * speeds, [1000.0, 56.2341, 8.5268, 0.8818, 0.0833, 0.0072])
    close(yarn.attention_factor, 1.2773)


def test_deepseek_scales_the_scores_and_leaves_queries_and_keys():
    m = yarn_factor(40, 1.0)
    close([m, m * m, 192**-0.5 * m * m], [1.3689, 1.8739, 0.1352])
    assert YaRN(40, 4096, mscale=1.0, mscale_all_dim=1.0).attention_factor == 1
    ratio = YaRN(40, 4096, mscale=0.707, mscale_all_dim=0.5).attention_factor
    close(ratio, (0.0707 * math.log(40) + 1) / (0.05 * math.log(40) + 1))


def test_llama_31():
    got = rotary_frequencies(128, base=5e5, scaling=Llama3Scaling(8, 8192))
    must = [10000.0, 1286.8737, 32.1145, 21.6657, 5.2485, 0.9556, 0.0031]
    close(1e4 * got[[0, 10, 28, 29, 32, 35, 63]], must)


# Where the factor of YaRN goes


@pytest.mark.parametrize("width", [4, 8])
def test_scores_get_the_square_of_yarns_factor_once(width):
    """Queries and keys get it; what does not turn passes as it was."""
    queries, keys = torch.randn(2, 1, 7, 8, dtype=torch.float64)
    scores = []
    for scaling in (YaRN(4, 64), YaRN(4, 64, attention_factor=1.0)):
        rotary = Rotary(8, rotary_dim=width, scaling=scaling)
        q, k = rotary(queries, keys, torch.arange(7))
        scores.append(q[..., :width] @ k[..., :width].mT)
        assert torch.equal(q[..., width:], queries[..., width:])
    factor = (0.1 * math.log(4) + 1) ** 2
    torch.testing.assert_close(scores[0], factor * scores[1])


def a_layer(scaling=None, process=None, **slots):
    """A layer whose six heads share two of keys, and two texts of eleven tokens."""
    process = process or Rotary(4, scaling=scaling)
    options = {"num_kv_heads": 2, "head_dim": 4, "process_heads": process}
    torch.manual_seed(0)
    layer = Attention(5, 7, 6, **options, **slots).double()
    return layer.requires_grad_(False), torch.randn(2, 11, 5, dtype=torch.float64)


def test_deepseeks_way_and_yarns_way_are_one_where_all_of_a_head_turns():
    inside, x = a_layer(YaRN(40, 64))
    scale = 4**-0.5 * yarn_factor(40) ** 2
    scaling = YaRN(40, 64, mscale=1.0, mscale_all_dim=1.0)
    outside, _ = a_layer(scaling, attend=partial(attend, scale=scale))
    torch.testing.assert_close(outside(x), inside(x))
    twice, _ = a_layer(YaRN(40, 64), attend=partial(attend, scale=scale))
    assert not torch.allclose(twice(x), inside(x))


def test_a_replaced_yarn_has_the_factor_of_its_own_numbers():
    short = YaRN(4.0, 4096)
    long = replace(short, factor=32.0)
    assert long == YaRN(32.0, 4096)
    assert long.attention_factor == YaRN(32.0, 4096).attention_factor
    again = replace(long, mscale=0.7, mscale_all_dim=0.5)
    assert again == YaRN(32.0, 4096, mscale=0.7, mscale_all_dim=0.5)
    assert repr(again).count("factor") == 2


def test_a_factor_that_was_given_to_yarn_stays_when_others_are_replaced():
    given = YaRN(4.0, 4096, attention_factor=1.5)
    assert replace(given, factor=32.0).attention_factor == 1.5
    given = replace(YaRN(4.0, 4096), attention_factor=1.5)
    assert replace(given, factor=32.0).attention_factor == 1.5


# What a scaling leaves alone

KINDS = {"linear": LinearScaling, "NTK": NTKScaling}
KINDS |= {
    kind.__name__: partial(kind, original_length=5)
    for kind in (YaRN, Llama3Scaling, DynamicNTKScaling)
}
every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@every
def test_a_factor_of_1_in_the_trained_length_changes_nothing(kind):
    got = rotary_frequencies(32, scaling=kind(1.0), positions=torch.arange(5))
    torch.testing.assert_close(got, rotary_frequencies(32))
    assert getattr(kind(1.0), "attention_factor", 1.0) == 1


@every
@pytest.mark.parametrize("base", [1e4, 5e5])
def test_no_pair_becomes_faster_and_none_is_slowed_by_more_than_the_factor(kind, base):
    plain = rotary_frequencies(32, base=base)
    options = {"base": base, "positions": torch.arange(5)}
    slowed = plain / rotary_frequencies(32, scaling=kind(8.0), **options)
    assert (slowed >= 1 - 1e-9).all()
    assert (slowed <= 8 + 1e-9).all()


@pytest.mark.parametrize("width", [2, 4, 6, 64])
@pytest.mark.parametrize("length", [1, 3, 64, 4096, 10**12])
@pytest.mark.parametrize("truncate", [True, False])
def test_yarns_ramp_never_runs_backwards(width, length, truncate):
    plain, yarn = rotary_frequencies(width), YaRN(4, length, truncate=truncate)
    slowed = plain / rotary_frequencies(width, scaling=yarn)
    assert (slowed.diff() >= -1e-12).all()
    turns, step = length * plain / (2 * math.pi), 1e4 ** (2 / width)
    assert (slowed[turns > 32 * step] == 1).all()
    late = turns < 1 / step
    late[0] &= not truncate  # the ramp may end at a whole pair, the first
    torch.testing.assert_close(slowed[late], torch.full_like(slowed[late], 4))


@pytest.mark.parametrize("kind", [YaRN, Llama3Scaling])
def test_turns_are_counted_in_the_length_of_the_training(kind):
    """With the length that can be read now, slow pairs would stay as fast as ever."""
    right, wrong = (
        rotary_frequencies(128, base=5e5, scaling=kind(4, length))
        for length in (8192, 4 * 8192)
    )
    assert (wrong >= right).all()
    assert (wrong > 1.5 * right).any()


@every
def test_no_token_at_all_is_turned_to_none(kind):
    heads = torch.randn(2, 3, 0, 6)
    got, _ = Rotary(6, scaling=kind(4.0))(heads, heads, torch.arange(0))
    assert got.shape == (2, 3, 0, 6)


@every
@pytest.mark.parametrize("ends", [[4], [1, 2, 3, 10]])
@pytest.mark.parametrize("slots", [{}, {"masks": (window(7),)}])
def test_in_pieces_equals_the_whole_but_for_dynamic(kind, ends, slots):
    layer, x = a_layer(kind(4.0), **slots)
    same = torch.allclose(in_pieces(layer, x, ends), layer(x))
    assert same == (not isinstance(kind(4.0), DynamicNTKScaling))


@every
def test_a_text_that_is_padded_on_the_left_is_read_as_if_alone(kind):
    """With dynamic, too: a text's own length counts, and not that of the batch."""
    layer, x = a_layer(kind(4.0))
    real = torch.ones(2, 11, dtype=torch.bool)
    real[0, :4] = False
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    got = layer(x, real[:, None, None], positions=positions)
    torch.testing.assert_close(got[0, 4:], layer(x[0, 4:]))
    torch.testing.assert_close(got[1], layer(x[1]))


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0, -1.0, "1"])
def test_a_factor_of_the_scores_that_makes_no_numbers_is_refused(factor, as_importer):
    match = said("attention_factor", "above 0", "got", factor)
    with pytest.raises(ValueError, match=match):
        YaRN(4, 4096, attention_factor=factor)


@pytest.mark.parametrize("mscale", [math.nan, math.inf, "1", 10**400])
def test_an_mscale_that_is_no_number_is_refused(mscale, as_importer):
    with pytest.raises(ValueError, match=said("mscale", "a number", "got", mscale)):
        YaRN(4, 4096, mscale=mscale, mscale_all_dim=1.0)


@pytest.mark.parametrize("scales", [(-100.0, 1.0), (1.0, -2.8)])
def test_a_factor_of_the_scores_that_comes_out_as_none_is_refused(scales, as_importer):
    mscale, of_all = scales
    with pytest.raises(ValueError, match=said("attention_factor", "above 0", "got")):
        YaRN(40, 4096, mscale=mscale, mscale_all_dim=of_all)


@pytest.mark.parametrize("factor", [-1, 0, 0.5, math.nan, "2"])
def test_a_base_is_not_made_smaller(factor, as_importer):
    with pytest.raises(ValueError, match=said("factor", "at least 1", "got", factor)):
        ntk_base(1e4, factor, 128)


@pytest.mark.parametrize("kind", [partial(YaRN, 4), partial(Llama3Scaling, 4)])
def test_turns_are_numbers(kind, as_importer):
    for name in ("slow", "low"):
        if name in kind.func.__dataclass_fields__:
            with pytest.raises(ValueError, match=said(name, "got", "many")):
                kind(4096, **{name: "many"})


# Dynamic


def test_dynamic_begins_beyond_the_trained_length_and_counts_from_the_factor():
    dynamic = DynamicNTKScaling(2, 64)
    short = rotary_frequencies(32, scaling=dynamic, positions=torch.arange(64))
    torch.testing.assert_close(short, rotary_frequencies(32))
    long = rotary_frequencies(32, scaling=dynamic, positions=torch.arange(128))
    must = rotary_frequencies(32, scaling=NTKScaling(2 * 128 / 64 - 1))
    torch.testing.assert_close(long, must)


@pytest.mark.parametrize("factor", [1.0, 3.3, 1e9, 1e18, 1e100])
def test_dynamic_leaves_the_trained_length_alone_whatever_the_factor(factor):
    dynamic = DynamicNTKScaling(factor, 64)
    short = rotary_frequencies(32, scaling=dynamic, positions=torch.arange(64))
    torch.testing.assert_close(short, rotary_frequencies(32), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", NARROW)
def test_dynamic_takes_positions_of_few_bits(dtype):
    queries, rotary = torch.randn(2, 90, 8), Rotary(8, scaling=DynamicNTKScaling(2, 64))
    must = rotary(queries, queries, torch.arange(90))
    got = rotary(queries, queries, torch.arange(90).to(dtype))
    assert torch.equal(got[0], must[0])


def test_dynamic_reads_no_number_on_the_way():
    positions = torch.arange(128, device="meta")
    dynamic = DynamicNTKScaling(2, 64)
    speeds = rotary_frequencies(32, scaling=dynamic, positions=positions)
    assert speeds.device.type == "meta"


# Pictures


@pytest.mark.parametrize("dtype", NARROW)
def test_text_after_a_picture_goes_on_whatever_bits_its_places_have(dtype):
    places = torch.tensor([[0] * 3, [torch.iinfo(dtype).max] * 3])
    must = MultimodalRotary(8, places, sections=(1, 1, 2))
    rotary = MultimodalRotary(8, places.to(dtype), sections=(1, 1, 2))
    positions = torch.arange(4)
    assert torch.equal(rotary.coordinates(positions), must.coordinates(positions))
    positions = positions.to(dtype)
    assert torch.equal(rotary.coordinates(positions), must.coordinates(positions))


def test_a_picture_lies_on_a_grid_and_text_goes_on_after_its_largest_coordinate():
    places = picture_places(2, (1, 2, 3), 2)
    assert places.T.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]
    film = picture_places((2, 1, 2))
    assert film.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1]]
    assert picture_places().shape == (0, 3)


@pytest.mark.parametrize("interleaved", [False, True])
def test_for_text_three_coordinates_are_one(interleaved):
    heads, count = torch.randn(2, 3, 5, 7, 16), torch.arange(7)
    options = {"sections": (2, 3, 3), "interleaved": interleaved}
    got = MultimodalRotary(16, picture_places(7), **options)(*heads, count)
    must = Rotary(16, interleaved=interleaved)(*heads, count)
    torch.testing.assert_close(got, must)


def test_each_pair_turns_by_the_coordinate_of_its_section():
    places = torch.tensor([[5, 11, 3]])
    heads = torch.randn(2, 1, 1, 16, dtype=torch.float64)
    rotary = MultimodalRotary(16, places, sections=(2, 3, 3))
    got, _ = rotary(*heads, torch.tensor([0]))
    for pair, place in enumerate([5, 5, 11, 11, 11, 3, 3, 3]):
        must, _ = Rotary(16)(*heads, torch.tensor([place]))
        own = [pair, pair + 8]
        torch.testing.assert_close(got[..., own], must[..., own])


def test_a_picture_is_read_in_pieces_and_the_text_goes_on():
    places = picture_places(2, (1, 2, 3))[:, 1:]
    rotary = MultimodalRotary(4, places, sections=(1, 1))
    layer, x = a_layer(process=rotary)
    torch.testing.assert_close(in_pieces(layer, x, [1, 4, 9, 10]), layer(x))
    after = rotary.coordinates(torch.tensor([8, 9, 10]))
    assert after.tolist() == [[5, 5], [6, 6], [7, 7]]


def test_texts_of_a_batch_may_hold_other_pictures():
    both = torch.stack([picture_places(7), picture_places(1, (1, 2, 3))])
    heads = torch.randn(2, 2, 5, 7, 16)
    together = MultimodalRotary(16, both, sections=(2, 3, 3))
    for rows in (torch.arange(7), torch.arange(7).expand(2, 7)):
        got, _ = together(*heads, rows)
        for number, places in enumerate(both):
            alone = MultimodalRotary(16, places, sections=(2, 3, 3))
            must, _ = alone(*heads[:, number], torch.arange(7))
            torch.testing.assert_close(got[number], must)


def test_another_dtype_of_the_model_rounds_no_place():
    rotary = MultimodalRotary(16, picture_places(300), sections=(2, 3, 3))
    assert not list(rotary.state_dict())
    assert torch.equal(rotary.to(torch.bfloat16).places, picture_places(300))


# Together


def test_scalings_are_told_and_compared_by_their_numbers():
    assert YaRN(4, 64) == YaRN(4, 64) != YaRN(4, 65)
    told = repr(Rotary(8, scaling=Llama3Scaling(8, 8192)))
    assert "Llama3Scaling(factor=8, original_length=8192" in told
    assert len({LinearScaling(2), LinearScaling(2), NTKScaling(2)}) == 2


def test_a_scaled_turn_follows_a_norm():
    layer, x = a_layer(process=ProcessHeads(QKNorm(4), Rotary(4, scaling=YaRN(4, 5))))
    torch.testing.assert_close(in_pieces(layer, x, [3, 7]), layer(x))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
def test_places_are_found_for_positions_in_few_bits(dtype):
    rotary = MultimodalRotary(6, picture_places(300), sections=(1, 1, 1))
    positions = torch.tensor([3, 50, 100])
    heads = torch.randn(2, 3, 6), torch.randn(1, 3, 6)
    narrow = rotary(*heads, positions.to(dtype))
    torch.testing.assert_close(narrow, rotary(*heads, positions))

"""Keys and values in few bits: off by half a step, and not by more ever after."""

import copy

import pytest
import torch
from caches import some_piece
from examples import said
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import Attention, KVCache, QuantizedCache, Rotary
from attention.core.layer import Cache
from attention.memory.quantised import _pack, _unpack, dequantize, quantize

BITS = (8, 4, 2)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
each = pytest.mark.parametrize("bits", BITS)
floats = pytest.mark.parametrize("dtype", FLOATS)

# Rulers


def test_absmax_of_a_token_is_as_published():
    numbers = torch.tensor([[0.1, -0.5, 1.27, 0.333], [0.1, -0.5, 12.7, 0.333]])
    codes, step, offset = quantize(numbers, 8, symmetric=True)
    error = (dequantize(codes, step, offset) - numbers).abs().amax(-1, keepdim=True)
    got = torch.cat([step, codes.float() - 127, error], dim=1)
    want = [[0.01, 10, -50, 127, 33, 0.003], [0.1, 1, -5, 127, 3, 0.033]]
    torch.testing.assert_close(got, torch.tensor(want), rtol=0, atol=6e-5)


def test_by_hand_with_two_bits():
    numbers = torch.tensor([[-1.0, 2, 0.4, 0.6]])
    codes, step, offset = quantize(numbers, 2)
    assert codes.tolist() == [[0, 3, 1, 2]]
    got = dequantize(codes, step, offset)
    torch.testing.assert_close(got, torch.tensor([[-1.0, 2, 0, 1]]))


def bound(step, offset, bits):
    """Half a step, and the rounding of its dtype; in 64 bits."""
    eps = torch.finfo(step.dtype).eps
    step, offset = step.double(), offset.double()
    return step / 2 + eps * (offset.abs() + 2**bits * step)


@given(
    bits=st.sampled_from(BITS),
    dtype=st.sampled_from(FLOATS),
    symmetric=st.booleans(),
    numbers=st.lists(st.floats(-6e4, 6e4), min_size=1, max_size=9),
    size=st.sampled_from([1.0, 1e-3, 1e-6, 1e-30, 1e30]),
)
@settings(max_examples=300, deadline=None)
def test_no_number_is_off_by_more_than_half_a_step(
    bits, dtype, symmetric, numbers, size
):
    numbers = torch.tensor(numbers, dtype=torch.float64)
    numbers = (numbers * size).to(dtype).nan_to_num()
    codes, step, offset = quantize(numbers, bits, symmetric=symmetric)
    assert codes.dtype == torch.uint8
    assert step.dtype == offset.dtype == dtype
    got = dequantize(codes, step, offset)
    assert got.dtype == dtype
    assert ((got.double() - numbers.double()).abs() <= bound(step, offset, bits)).all()


@each
@floats
@pytest.mark.parametrize("size", [1e-7, 1e-3, 1.0, 9e3])
def test_zero_lies_on_a_mark_of_a_symmetric_ruler(bits, dtype, size):
    numbers = (torch.randn(500, 9, dtype=torch.float64) * size).to(dtype)
    numbers[:, 0] = 0
    codes, step, offset = quantize(numbers, bits, symmetric=True)
    half = 2 ** (bits - 1) - 1
    assert torch.equal(offset.double(), -half * step.double())
    assert (codes[:, 0] == half).all()
    assert codes.max() <= 2 * half
    assert (dequantize(codes, step, offset)[:, 0] == 0).all()


@each
def test_a_symmetric_ruler_ends_where_sixteen_bits_do(bits):
    numbers = torch.tensor([65504.0, -65504.0, 3.0]).half()
    codes, step, offset = quantize(numbers, bits, symmetric=True)
    assert offset.isfinite().all()
    error = (dequantize(codes, step, offset).double() - numbers.double()).abs()
    assert (error <= bound(step, offset, bits)).all()


def test_a_symmetric_step_has_a_gradient():
    numbers = torch.tensor([1.0, -4.0, 2.0], requires_grad=True)
    quantize(numbers, 8, symmetric=True)[1].sum().backward()
    torch.testing.assert_close(numbers.grad, torch.tensor([0, -1 / 127, 0]))


@each
@floats
@pytest.mark.parametrize("number", [0.0, -0.0, 0.1, -7.3, 6e4, 1e-7])
def test_a_constant_group_is_exact(bits, dtype, number):
    same = torch.full((3, 5), number, dtype=dtype)
    codes, step, offset = quantize(same, bits)
    assert (step > 0).all()
    assert (codes == 0).all()
    assert torch.equal(dequantize(codes, step, offset), same)


@each
def test_the_ends_of_a_group_are_exact_to_rounding(bits):
    numbers = torch.randn(7, 11, dtype=torch.float64)
    got = dequantize(*quantize(numbers, bits))
    for end in (torch.amin, torch.amax):
        torch.testing.assert_close(end(got, -1), end(numbers, -1))


def test_the_step_of_sixteen_bits_is_never_rounded_down():
    numbers = torch.rand(1000, 2).bfloat16()
    _, step, _ = quantize(numbers, 8)
    span = numbers.float().amax(-1, keepdim=True) - numbers.float().amin(-1, True)
    assert (255 * step.double() >= span.double()).all()


def test_an_outlier_is_paid_by_its_group_alone():
    numbers = torch.randn(8, 6)
    other = numbers.clone()
    other[3, 4] = 1000.0
    error, more = (
        (dequantize(*quantize(t, 4)) - t).abs().amax(-1) for t in (numbers, other)
    )
    rows = torch.arange(8) != 3
    assert torch.equal(error[rows], more[rows])
    assert more[3] > 10 * error[3]


@pytest.mark.parametrize("dim", [0, 1, -1, -3])
def test_any_axis_may_share_a_step(dim):
    numbers = torch.randn(3, 5, 7)
    codes, step, offset = quantize(numbers, 4, dim)
    assert step.shape[dim] == offset.shape[dim] == 1
    moved = quantize(numbers.movedim(dim, -1), 4)
    for got, want in zip((codes, step, offset), moved, strict=True):
        assert torch.equal(got.movedim(dim, -1), want)


ODD = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_what_is_not_finite_is_refused(odd, dtype):
    numbers = torch.randn(3, 5).to(dtype)
    numbers[1, 2] = odd
    with pytest.raises(ValueError, match=said("numbers", "finite", "got", odd)):
        quantize(numbers, 8)


def test_a_range_that_overflows_is_refused():
    numbers = torch.tensor([3e38, -3e38])
    with pytest.raises(ValueError, match=said("numbers", "finite", "got 3")):
        quantize(numbers, 8)
    wide = torch.tensor([6e4, -6e4]).half()  # which float32 holds
    codes, step, offset = quantize(wide, 2)
    assert torch.equal(dequantize(codes, step, offset).sign(), wide.sign())


@pytest.mark.parametrize("bits", [0, 1, 3, 16, -2, "8", None, True])
def test_other_bits_are_refused(bits, as_importer):
    told = said("bits", "8, 4 or 2", "got", repr(bits))
    for call in (lambda: quantize(torch.randn(3), bits), lambda: QuantizedCache(bits)):
        with pytest.raises(ValueError, match=told):
            call()


def test_what_cannot_share_a_step_is_refused(as_importer):
    with pytest.raises(ValueError, match=said("numbers", "floats", "got torch.int64")):
        quantize(torch.arange(3), 8)
    with pytest.raises(ValueError, match=said("numbers", "axis 2", "got")):
        quantize(torch.randn(3, 5), 8, 2)
    with pytest.raises(ValueError, match=said("numbers", "at least one", "(3, 0)")):
        quantize(torch.randn(3, 0), 8)
    with pytest.raises(TypeError, match=said("numbers", "got list")):
        quantize([1.0], 8)


# Bytes


@each
def test_what_is_packed_comes_back(bits):
    codes = torch.randint(2**bits, (2, 3, 8, 5), dtype=torch.uint8)
    packed = _pack(codes, bits)
    assert packed.shape == (2, 3, bits, 5)
    assert packed.dtype == torch.uint8
    assert torch.equal(_unpack(packed, bits), codes)


def test_the_first_code_has_the_last_bits():
    codes = torch.tensor([[3], [0], [1], [2]], dtype=torch.uint8)
    assert _pack(codes, 2).tolist() == [[0b10_01_00_11]]
    assert _pack(codes, 4).tolist() == [[0x03], [0x21]]


# The cache


def some(length=23, dtype=torch.float32):
    """Keys and values of two texts and three heads, and positions."""
    torch.manual_seed(0)
    keys, values = torch.randn(2, 3, length, 5), torch.randn(2, 3, length, 7)
    return keys.to(dtype), values.to(dtype), torch.arange(length)


def cut(tensors, start, end):
    keys, values, positions = tensors
    return keys[..., start:end, :], values[..., start:end, :], positions[..., start:end]


def filled(cache, tensors, *sizes):
    """The cache after pieces of these sizes, and what it gave last."""
    given = None
    for size in sizes:
        at = cache.length
        given = cache.extend(*cut(tensors, at, at + size))
    return given


def state(cache):
    parts = [*sum(cache._groups, ()), *cache._rest, cache.positions]
    return [cache._counts, *(part.tolist() for part in parts)]


def peek(cache):
    """What is held, read without a trace."""
    rest = cache._rest
    empty = cut((*rest, cache.positions[..., :0]), 0, 0)
    keys, values, _ = copy.copy(cache).extend(*empty)
    return keys, values


def within(cache, tensors):
    """Is all that is held as near to what came as the cache says?"""
    keys, values, positions = cut(tensors, 0, cache.length)
    assert torch.equal(cache.positions, positions)
    held, bounds = peek(cache), cache.error_bounds()
    for got, came, most in zip(held, (keys, values), bounds, strict=True):
        assert got.dtype == came.dtype
        assert got.shape == came.shape == most.shape
        if not ((got.double() - came.double()).abs() <= most.double()).all():
            return False
    return True


def test_it_is_a_cache():
    assert isinstance(QuantizedCache(4), Cache)


def test_an_empty_cache_gives_back_what_it_was_given():
    tensors = some()
    for got, came in zip(filled(QuantizedCache(2), tensors, 23), tensors, strict=True):
        assert torch.equal(got, came)


@each
@floats
def test_what_is_held_is_within_the_stated_error(bits, dtype):
    tensors, cache = some(dtype=dtype), QuantizedCache(bits, group=4)
    filled(cache, tensors, 9, 1, 1, 5)
    assert within(cache, tensors)
    assert cache._counts == 4 * (4,)
    assert cache.length == 16
    filled(cache, tensors, 3)
    assert within(cache, tensors)
    for got, came in zip(peek(cache), tensors, strict=False):
        assert torch.equal(got[..., 16:, :], came[..., 16:19, :])
        assert not torch.equal(got[..., :16, :], came[..., :16, :])


def test_what_is_not_rounded_has_a_bound_of_0():
    cache = QuantizedCache(8, group=3)
    with torch.no_grad():
        cache.extend(*some_piece(2, widths=(5, 7)))
    bounds = cache.error_bounds()
    assert [b.shape for b in bounds] == [(2, 3, 2, 5), (2, 3, 2, 7)]
    assert not any(b.any() for b in bounds)


def test_the_bound_is_half_a_step_of_its_own_group():
    tensors, cache = some(8, torch.float64), QuantizedCache(4, group=8)
    filled(cache, tensors, 8)
    keys, values, _ = tensors
    bounds = cache.error_bounds()
    of_keys = (keys.amax(-2, True) - keys.amin(-2, True)) / 30
    of_values = (values.amax(-1, True) - values.amin(-1, True)) / 30
    torch.testing.assert_close(bounds[0], of_keys.expand_as(keys))
    torch.testing.assert_close(bounds[1], of_values.expand_as(values))


@each
def test_a_channel_of_outliers_hurts_no_other_channel(bits):
    keys, values, positions = some(16)
    loud = keys.clone()
    loud[..., 2] = 100 + 50 * loud[..., 2]
    plain, other = (QuantizedCache(bits, group=8) for _ in "ab")
    filled(plain, (keys, values, positions), 16)
    filled(other, (loud, values, positions), 16)
    quiet = torch.arange(5) != 2
    assert torch.equal(peek(plain)[0][..., quiet], peek(other)[0][..., quiet])


@each
def test_a_loud_value_hurts_no_other_token(bits):
    keys, values, positions = some(16)
    loud = values.clone()
    loud[..., 3, :] *= 100
    plain, other = (QuantizedCache(bits, group=8) for _ in "ab")
    filled(plain, (keys, values, positions), 16)
    filled(other, (keys, loud, positions), 16)
    quiet = torch.arange(16) != 3
    assert torch.equal(peek(plain)[1][..., quiet, :], peek(other)[1][..., quiet, :])


@each
@pytest.mark.parametrize("residual", [0, 1, 6])
def test_however_a_text_is_cut_the_same_is_held(bits, residual):
    tensors, states = some(), []
    for sizes in ([23], 23 * [1], [4, 4, 15], [3, 0, 18, 2], [22, 1]):
        cache = QuantizedCache(bits, group=4, residual=residual)
        filled(cache, tensors, *sizes)
        states.append(state(cache))
    assert all(each == states[0] for each in states)


@each
def test_a_group_is_cut_short_and_never_rounded_again(bits):
    tensors, cache = some(), QuantizedCache(bits, group=4)
    filled(cache, tensors, 8, 1)
    first = [each[..., :6, :] for each in peek(cache)]
    for _ in range(9):
        cache.truncate(6)
        assert within(cache, tensors)
        filled(cache, tensors, 1, 4, 2)
        assert within(cache, tensors)
        for got, was in zip(peek(cache), first, strict=True):
            assert torch.equal(got[..., :6, :], was)
    assert cache._counts == (4, 2, 4)


@pytest.mark.parametrize("length", range(24))
@pytest.mark.parametrize("sizes", [[23], [7, 9, 7], [9, 1, 13], 23 * [1]])
def test_after_any_rollback_it_goes_on_within_the_stated_error(sizes, length):
    tensors, cache = some(), QuantizedCache(4, group=4)
    filled(cache, tensors, *sizes)
    cache.truncate(length)
    assert cache.length == length
    assert cache.positions.tolist() == list(range(length))
    if length > 0:
        assert within(cache, tensors)
    filled(cache, tensors, 1)
    filled(cache, tensors, *(23 - cache.length) * [1])
    assert within(cache, tensors)


@each
@pytest.mark.parametrize("before", [1, 3, 4, 6, 8, 11])
@pytest.mark.parametrize("new", [1, 2, 5, 12])
def test_back_where_the_last_piece_began_all_is_as_it_was(bits, before, new):
    tensors, cache = some(), QuantizedCache(bits, group=4)
    filled(cache, tensors, before)
    was = state(cache)
    filled(cache, tensors, new)
    cache.truncate(before)
    assert state(cache) == was


def test_within_the_residual_no_group_is_cut():
    tensors = some()
    for length in range(12, 23):
        for back in range(6):
            cache = QuantizedCache(4, group=4, residual=5)
            filled(cache, tensors, *length * [1])
            cache.truncate(length - back)
            assert set(cache._counts) <= {4}


def test_a_truncated_cache_is_empty_and_takes_any_kind():
    cache = QuantizedCache(4, group=4)
    filled(cache, some(), 9)
    cache.truncate(0)
    assert cache.length == 0
    assert cache.nbytes == 0
    filled(cache, some(dtype=torch.float16), 9)


def test_a_deep_copy_of_a_cache_with_gradients_goes_its_own_way():
    tensors, cache = some(), QuantizedCache(4, group=4)
    for tensor in tensors[:2]:
        tensor.requires_grad_()
    filled(cache, tensors, 9)
    twin = copy.deepcopy(cache)
    was = state(twin)
    filled(cache, tensors, 5)
    cache.truncate(2)
    assert state(twin) == was


def storages(cache):
    copied = {}
    copy.deepcopy(vars(cache), copied)
    tensors = [t for t in copied.values() if isinstance(t, torch.Tensor)]
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
    return sum(each.nbytes() for each in memory.values())


@each
def test_the_bytes_counted_are_the_bytes_held(bits):
    tensors, cache = some(), QuantizedCache(bits, group=4)
    for size in (9, 1, 1, 1, 1, 6):
        filled(cache, tensors, size)
        assert storages(cache) == cache.nbytes
    for length in (18, 13, 6, 2):
        cache.truncate(length)
        assert storages(cache) == cache.nbytes
    new = torch.randn(2, 1, 4, 128, 16)
    cache = QuantizedCache(bits, group=128)
    cache.extend(*new, torch.arange(128))
    codes, rulers = 2 * 4 * 128 * 16 * bits // 8, 4 * (128 + 16) * 8
    assert cache.nbytes == codes + rulers + 128 * 8


def test_what_it_holds_is_its_own():
    tensors = some()
    cache = QuantizedCache(4, group=4)
    given = filled(cache, tensors, 6)
    was = state(cache)
    for each in (*tensors, *given):
        each.zero_()
    assert state(cache) == was


def test_a_copy_goes_its_own_way():
    tensors, cache = some(), QuantizedCache(4, group=4)
    filled(cache, tensors, 7)
    other, was = copy.copy(cache), state(cache)
    filled(other, tensors, 9)
    other.truncate(3)
    assert state(cache) == was
    assert other.length == 3


def refused(cache, *given, match):
    was = state(cache)
    with pytest.raises(ValueError, match=match):
        cache.extend(*given)
    assert state(cache) == was


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["keys", "values"])
def test_a_piece_that_is_not_finite_is_refused_and_nothing_changes(name, odd):
    tensors, cache = some(), QuantizedCache(4, group=4)
    filled(cache, tensors, 6)
    piece = [each.clone() for each in cut(tensors, 6, 7)]
    piece[name == "values"][1, 2, 0, 3] = odd
    refused(cache, *piece, match=said(name, "finite", "got", odd))
    filled(cache, tensors, 1)
    assert within(cache, tensors)


def test_a_piece_of_another_kind_is_refused_and_nothing_changes(as_importer):
    tensors, cache = some(), QuantizedCache(4, group=4)
    filled(cache, tensors, 8)
    keys, values, positions = cut(tensors, 8, 9)
    refused(cache, keys.half(), values.half(), positions, match="keys")
    refused(cache, keys[:1], values[:1], positions, match="keys")
    refused(cache, keys[:, :2], values[:, :2], positions, match="keys")
    refused(cache, keys[..., :4], values, positions, match="keys")
    refused(cache, keys, values[..., :4], positions, match="values")
    refused(cache, keys, values, positions - 1, match="positions")
    for length in (-1, 9, 2.0, True):
        with pytest.raises(ValueError, match=said("length", "got", length)):
            cache.truncate(length)
    filled(cache, tensors, 1)
    assert within(cache, tensors)


@pytest.mark.parametrize("group", [0, -4, 1, 2, 6, 4.0])
def test_a_group_that_fills_no_whole_bytes_is_refused(group, as_importer):
    with pytest.raises(ValueError, match=said("group", "got", group)):
        QuantizedCache(2, group=group)


@pytest.mark.parametrize("residual", [-1, 0.5, True, None])
def test_a_residual_that_counts_no_tokens_is_refused(residual, as_importer):
    with pytest.raises(ValueError, match=said("residual", "got", residual)):
        QuantizedCache(2, residual=residual)


# In a layer


def layer_of(dtype=torch.float32):
    torch.manual_seed(0)
    slots = {"num_kv_heads": 2, "process_heads": Rotary(4)}
    layer = Attention(5, 16, 4, **slots).to(dtype).requires_grad_(False)
    return layer, torch.randn(2, 19, 5).to(dtype)


@floats
def test_a_layer_is_off_by_little_with_eight_bits(dtype):
    layer, x = layer_of(dtype)
    cache = QuantizedCache(8, group=4)
    pieces = [layer(piece, cache=cache) for piece in x.split([7, 1, 1, 5, 5], dim=1)]
    got = torch.cat(pieces, dim=1)
    assert got.dtype == dtype
    torch.testing.assert_close(got, layer(x), rtol=0, atol=0.03)


def test_with_no_whole_group_it_is_exact():
    layer, x = layer_of()
    cache = QuantizedCache(2, group=4, residual=19)
    pieces = [layer(piece, cache=cache) for piece in x.split([7, 1, 1, 5, 5], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x))


def test_texts_padded_on_the_left_keep_their_own_positions():
    layer, x = layer_of()
    real = torch.ones(2, 19, dtype=torch.bool)
    real[0, :5] = False
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    exact, cache = KVCache(), QuantizedCache(8, group=4)
    for start, end in ((0, 8), (8, 9), (9, 19)):
        mask = real[:, None, None, :end]
        piece, where = x[:, start:end], positions[:, start:end]
        got, want = (
            layer(piece, mask, positions=where, cache=each) for each in (cache, exact)
        )
        torch.testing.assert_close(got, want, rtol=0, atol=0.03)
    assert torch.equal(cache.positions, positions)
    cache.truncate(11)
    assert torch.equal(cache.positions, positions[:, :11])


def test_a_mask_that_is_refused_leaves_the_cache_as_it_was():
    layer, x = layer_of()
    cache = QuantizedCache(4, group=4)
    layer(x[:, :7], cache=cache)
    was = state(cache)
    with pytest.raises(ValueError, match=said("mask", "last axis", "got")):
        layer(x[:, 7:12], torch.ones(5, 5, dtype=torch.bool), cache=cache)
    assert state(cache) == was


def test_gradients_pass_the_rest_and_codes_refuse_them():
    layer, x = layer_of()
    layer.requires_grad_(True)
    cache = QuantizedCache(4, group=8)
    outs = [layer(piece, cache=cache) for piece in x[:, :7].split(3, dim=1)]
    torch.cat(outs, dim=1).square().sum().backward()
    got = layer.W_key.weight.grad.clone()
    layer.zero_grad()
    layer(x[:, :7]).square().sum().backward()
    torch.testing.assert_close(got, layer.W_key.weight.grad)

    cache = QuantizedCache(4, group=4)
    layer(x[:, :6], cache=cache)
    out = layer(x[:, 6:9], cache=cache)
    told = "QuantizedCache: expected no gradient through codes, .* got backward"
    with pytest.raises(RuntimeError, match=told):
        torch.autograd.grad(out.sum(), layer.W_key.weight)


def test_without_gradients_none_are_spoken_of():
    layer, x = layer_of()
    layer.requires_grad_(True)
    cache = QuantizedCache(4, group=4)
    with torch.no_grad():
        layer(x[:, :6], cache=cache)
    layer(x[:, 6:9], cache=cache).sum().backward()  # of what is new alone
    assert layer.W_key.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_works_on_shapes_alone(dtype):
    cache, text = QuantizedCache(8, group=4, residual=3), some_piece(23, (2,))
    text = [t.to("meta", dtype) for t in text[:2]] + [text[2].to("meta")]
    for start, end in ((0, 9), (9, 14), (14, 15)):
        part = [t[..., start:end, :] for t in text[:2]] + [text[2][start:end]]
        keys, values, _ = cache.extend(*part)
        assert keys.shape == text[0][..., :end, :].shape
        assert values.shape == text[1][..., :end, :].shape
    cache.truncate(6)
    keys, _, _ = cache.extend(*(t[..., 6:9, :] for t in text[:2]), text[2][6:9])
    assert keys.shape == text[0][..., :9, :].shape
    assert cache.error_bounds()[0].shape == keys.shape


def test_it_works_under_vmap():
    keys, values, positions = some_piece(13, (3,))

    def read(keys, values):
        cache = QuantizedCache(8, group=4)
        cache.extend(keys[..., :9, :], values[..., :9, :], positions[:9])
        new = keys[..., 9:, :], values[..., 9:, :], positions[9:]
        return cache.extend(*new)[:2]

    got = torch.func.vmap(read)(keys, values)
    for mapped, must in zip(got, read(keys, values), strict=True):
        torch.testing.assert_close(mapped, must)


def test_floats_of_8_bits_are_refused(as_importer):
    text = some_piece(5, ())
    small = [t.to(torch.float8_e4m3fn) for t in text[:2]]
    with pytest.raises(ValueError, match=said("keys", "16 bits or more", "float8")):
        QuantizedCache(8).extend(*small, text[2])
    with pytest.raises(ValueError, match=said("numbers", "16 bits or more", "float8")):
        quantize(small[0], 8)

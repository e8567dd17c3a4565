"""Flash attention in Triton: the numbers and gradients of by hand, in 16 bits too."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from examples import TRACERS, assert_twins, said
from torch.library import opcheck

from attention import (
    MultiHeadAttention,
    attend,
    attention_weights,
    future_leak,
    merge_states,
    triton_attend,
)
from attention.speed import flash_triton

pytest.importorskip("triton", minversion="3.7")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def some_tensors(sizes=(2, 3, 3, 37, 53), width=16, dtype=torch.float32):
    """Queries, keys and values: batch, heads, key heads, and two lengths."""
    batch, heads, groups, num_queries, num_keys = sizes
    shapes = (heads, num_queries), (groups, num_keys), (groups, num_keys)
    tensors = (torch.randn(batch, *shape, width) for shape in shapes)
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in tensors]


def by_hand(queries, keys, values, **options):
    shared = queries.shape[-3] // keys.shape[-3] if queries.ndim > 2 else 1
    keys, values = (t.repeat_interleave(shared, dim=-3) for t in (keys, values))
    return attention_weights(queries, keys, **options) @ values


def results(form, tensors, do, dtype=None, **options):
    """Context and gradients; `dtype` is what they are computed in."""
    tensors = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    context = form(*tensors, **options)
    return context, *torch.autograd.grad(context, tensors, do.to(context.dtype))


def band(num_queries, num_keys, window):
    """The last queries of a sequence see `window` keys that end at their own."""
    own = torch.arange(num_keys - num_queries, num_keys, device=DEVICE)
    distance = own[:, None] - torch.arange(num_keys, device=DEVICE)
    return (distance >= 0) & (distance < window)


def same(tensors, **options):
    """Does the kernel give what by hand gives, forward and backward?"""
    do = torch.randn(tensors[0].shape).to(DEVICE)
    ours = results(triton_attend, tensors, do, **options)
    options.pop("tile", None)
    torch.testing.assert_close(ours, results(by_hand, tensors, do, **options))


# The interpreter's NumPy warns of a nan.
nan_is_meant = pytest.mark.filterwarnings("ignore::RuntimeWarning")

SIZES = {
    "as many queries as keys": (1, 1, 1, 37, 37),
    "the last queries": (1, 1, 1, 5, 71),
    "one query": (1, 2, 1, 1, 37),
    "one of each": (1, 1, 1, 1, 1),
    "whole tiles": (1, 1, 1, 32, 64),
    "several sequences": (3, 1, 1, 2, 5),
    "heads that share keys": (1, 4, 2, 11, 37),
    "heads that share all keys": (1, 3, 1, 37, 41),
}


def test_no_heads_give_no_contexts():
    nothing = torch.randn(1, 0, 8, 16)
    assert triton_attend(nothing, nothing, nothing).shape == (1, 0, 8, 16)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_it_equals_by_hand_forward_and_backward(sizes, causal):
    same(some_tensors(sizes), causal=causal)


@pytest.mark.parametrize("width", [16, 32, 64, 128])
def test_it_knows_each_width(width):
    same(some_tensors((1, 1, 1, 37, 41), width), causal=True)


def test_more_queries_than_keys_will_do_if_all_are_seen():
    same(some_tensors((1, 1, 1, 41, 7)))


@pytest.mark.parametrize("tile", [(16, 16), (16, 64), (64, 16)], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_the_size_of_a_tile_changes_nothing(tile, causal):
    same(some_tensors((1, 1, 1, 53, 71)), causal=causal, tile=tile)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("earlier", [0, 1, 2, 14, 15, 16, 17])
def test_wherever_the_diagonal_meets_a_tile_all_is_seen_and_no_more(earlier, window):
    tensors = some_tensors((1, 1, 1, 35, 35 + earlier))
    same(tensors, causal=True, window=window, tile=(16, 16))


@pytest.mark.parametrize("tile", [(16, 16), (16, 64), (64, 16)], ids=str)
@pytest.mark.parametrize("window", [1, 16, 20, 33, 71, 1000])
def test_a_window_counts_the_query_itself(tile, window):
    same(some_tensors((1, 1, 1, 53, 71)), causal=True, window=window, tile=tile)


def test_heads_that_share_keys_have_one_window():
    same(some_tensors((2, 4, 2, 131, 131)), causal=True, window=11, tile=(32, 16))


@nan_is_meant
def test_tiles_before_the_window_are_never_read():
    queries, keys, values = (t.detach() for t in some_tensors((1, 1, 1, 64, 64)))
    expected = by_hand(queries, keys, values, mask=band(64, 64, 16))
    keys[:, :, :32], values[:, :, :32] = torch.nan, torch.nan
    options = {"causal": True, "window": 16, "tile": (16, 16)}
    context = triton_attend(queries, keys, values, **options)
    torch.testing.assert_close(context[:, :, 48:], expected[:, :, 48:])


def test_the_scale_can_be_chosen():
    same(some_tensors((1, 1, 1, 7, 11)), scale=0.3)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_in_16_bits_it_errs_at_most_twice_as_much_as_by_hand(dtype, causal):
    tensors = some_tensors((1, 2, 1, 67, 67), 64, dtype)
    do = torch.randn(1, 2, 67, 64).to(DEVICE, dtype)
    exact = results(by_hand, tensors, do, torch.float64, causal=causal)
    ours = results(triton_attend, tensors, do, causal=causal)
    plain = results(by_hand, tensors, do, causal=causal)
    for one, other, truth in zip(ours, plain, exact, strict=True):
        assert one.dtype == dtype
        assert (one - truth).abs().mean() <= 2 * (other - truth).abs().mean()


LEADING = {
    "no batch, no heads": ((5, 16), (7, 16), (7, 16)),
    "heads alone": ((3, 5, 16), (3, 7, 16), (3, 7, 16)),
    "two batches": ((2, 1, 3, 5, 16), (2, 1, 3, 7, 16), (2, 1, 3, 7, 16)),
    "keys for all": ((2, 3, 5, 16), (7, 16), (3, 7, 16)),
    "keys and values for all": ((4, 5, 16), (7, 16), (7, 16)),
    "queries for all": ((1, 5, 16), (3, 7, 16), (3, 7, 16)),
    "values for all heads": ((2, 3, 5, 16), (2, 3, 7, 16), (2, 1, 7, 16)),
    "nothing to see": ((2, 3, 5, 16), (2, 3, 0, 16), (2, 3, 0, 16)),
    "nobody to see it": ((2, 3, 0, 16), (2, 3, 5, 16), (2, 3, 5, 16)),
    "no sequence": ((0, 3, 5, 16), (0, 3, 5, 16), (0, 3, 5, 16)),
}


@pytest.mark.parametrize("shapes", LEADING.values(), ids=LEADING.keys())
def test_leading_axes_are_those_of_attend(shapes):
    tensors = [torch.randn(shape).to(DEVICE).requires_grad_() for shape in shapes]
    ours, fused = triton_attend(*tensors), attend(*tensors)
    torch.testing.assert_close(ours, fused)
    do = torch.randn(ours.shape).to(DEVICE)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (ours, fused)]
    torch.testing.assert_close(*gradients)


LAID_OUT = {
    "numbers of a token far apart": lambda t: t.mT.contiguous().mT,
    "every second number": lambda t: torch.stack([t, t * torch.nan], dim=-1)[..., 0],
    "heads last": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
}


@pytest.mark.parametrize("lay_out", LAID_OUT.values(), ids=LAID_OUT.keys())
def test_what_is_no_copy_is_read_as_well(lay_out):
    tensors = [t.detach() for t in some_tensors((2, 3, 3, 7, 7))]
    given = [lay_out(tensor) for tensor in tensors]
    assert not any(tensor.is_contiguous() for tensor in given)
    torch.testing.assert_close(triton_attend(*given), attend(*tensors))


def test_two_heads_of_keys_serve_six_of_queries_without_a_batch():
    queries, keys, values = (t.detach()[0] for t in some_tensors((1, 6, 2, 5, 7)))
    context = triton_attend(queries, keys, values)
    torch.testing.assert_close(context, by_hand(queries, keys, values))


@pytest.mark.parametrize("heads", [(4, 2, 4), (6, 2, 3), (4, 2, 1), (4, 1, 2)], ids=str)
def test_keys_and_values_may_be_shared_differently(heads):
    tensors = [
        torch.randn(h, n, 16).to(DEVICE) for h, n in zip(heads, (5, 7, 7), strict=True)
    ]
    repeat = [t.repeat_interleave(heads[0] // len(t), dim=0) for t in tensors]
    torch.testing.assert_close(triton_attend(*tensors), attend(*repeat))


def test_inputs_are_left_alone():
    tensors = some_tensors((1, 1, 1, 7, 7))
    before = [tensor.clone() for tensor in tensors]
    triton_attend(*tensors).sum().backward()
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize("causal", [False, True])
def test_extreme_scores_stay_finite(causal):
    queries, keys, values = some_tensors((1, 1, 1, 37, 37))
    tensors = [100 * queries, -100 * keys, values]
    context = triton_attend(*tensors, causal=causal)
    torch.testing.assert_close(context, by_hand(*tensors, causal=causal))
    gradients = torch.autograd.grad(context.sum(), tensors)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [7, 37, 32])
def test_a_key_beyond_the_end_does_not_overflow_where_all_scores_are_low(
    length, causal
):
    tensors = [torch.rand(1, 1, length, 16).to(DEVICE) for _ in "qkv"]
    tensors = [20 * tensors[0], -20 * tensors[1], tensors[2]]
    do = torch.randn(1, 1, length, 16).to(DEVICE)
    found, wanted = (
        results(form, tensors, do, causal=causal) for form in (triton_attend, by_hand)
    )
    # scores of hundreds have fewer digits after the point
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@nan_is_meant
def test_not_a_number_is_not_hidden():
    queries, keys, values = (t.detach() for t in some_tensors((1, 2, 2, 7, 7)))
    queries[:, :, 3] = torch.nan
    context = triton_attend(queries, keys, values)
    assert context[:, :, 3].isnan().all()
    assert context[:, :, :3].isfinite().all()


@nan_is_meant
def test_tiles_in_the_future_are_never_read():
    queries, keys, values = (t.detach() for t in some_tensors((1, 1, 1, 64, 64)))
    expected = attend(queries, keys, values, causal=True)
    keys[:, :, 32:], values[:, :, 32:] = torch.nan, torch.nan
    context = triton_attend(queries, keys, values, causal=True, tile=(16, 16))
    torch.testing.assert_close(context[:, :, :32], expected[:, :, :32])


def test_two_runs_give_the_same_bits():
    tensors, do = some_tensors((1, 4, 2, 7, 37)), torch.ones(1, 4, 7, 16)
    runs = [results(triton_attend, tensors, do.to(DEVICE)) for _ in range(2)]
    assert all(map(torch.equal, *runs))


# Parts


part = partial(triton_attend, return_lse=True)


def test_the_logsumexp_is_that_of_the_scores():
    queries, keys, values = some_tensors((2, 3, 1, 5, 41))
    scores = queries @ keys.mT / 16**0.5
    _, logsumexp = part(queries, keys, values)
    torch.testing.assert_close(logsumexp, scores.logsumexp(dim=-1))


def test_parts_of_the_keys_merge():
    queries, keys, values = some_tensors((1, 2, 2, 5, 41))
    first = part(queries, keys[:, :, :17], values[:, :, :17])
    second = part(queries, keys[:, :, 17:], values[:, :, 17:])
    context, _ = merge_states(*first, *second)
    expected = attend(queries, keys, values)
    torch.testing.assert_close(context, expected)
    tensors, do = (queries, keys, values), torch.randn(context.shape).to(DEVICE)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (context, expected)]
    torch.testing.assert_close(*gradients)


def test_the_logsumexp_has_a_gradient():
    tensors = some_tensors((1, 2, 1, 5, 37))
    context, lse = part(*tensors, causal=True, tile=(16, 16))
    repeated = (t.repeat_interleave(2, dim=1) for t in tensors[1:])
    queries, (keys, values) = tensors[0], repeated
    scores = queries @ keys.mT / 4
    hidden = torch.ones(5, 37, dtype=torch.bool).triu(33).to(DEVICE)
    scores = scores.masked_fill(hidden, -torch.inf)
    expected = scores.softmax(dim=-1) @ values, scores.logsumexp(dim=-1)
    torch.testing.assert_close((context, lse), expected)
    sums = [z.sin().sum() + (3 * L).cos().sum() for z, L in ((context, lse), expected)]
    gradients = [torch.autograd.grad(y, tensors) for y in sums]
    torch.testing.assert_close(*gradients)


def test_no_key_is_a_part_too():
    queries, keys, values = some_tensors((1, 2, 2, 5, 41))
    context, lse = part(queries, keys[:, :, :0], values[:, :, :0])
    assert (context == 0).all()
    assert lse.isneginf().all()
    (context.sum() + lse.sum()).backward()
    assert (queries.grad == 0).all()


# A scale that learns


@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=str)
def test_a_learned_scale_learns(shape):
    tensors = some_tensors((2, 3, 3, 5, 7))
    scale = torch.rand(shape).to(DEVICE).requires_grad_()
    found, expected = (
        form(*tensors, scale=scale, causal=True) for form in (triton_attend, by_hand)
    )
    torch.testing.assert_close(found, expected)
    do = torch.randn(found.shape).to(DEVICE)
    gradients = [
        torch.autograd.grad(y, [scale, *tensors], do) for y in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)  # long sums


# Under torch.func


def both(ask, *args, **options):
    """What `ask` finds for the kernels, and for the form by hand."""
    found = [ask(partial(form, **options), *args) for form in (triton_attend, by_hand)]
    torch.testing.assert_close(*found)


def loss(form):
    return lambda *three: form(*three).sin().sum()


def grouped():
    return [tensor.detach() for tensor in some_tensors((2, 4, 2, 5, 7))]


def test_torch_func_grad_and_vjp_are_those_of_by_hand():
    both(lambda f, *t: torch.func.grad(loss(f), (0, 1, 2))(*t), *grouped(), causal=True)
    do = torch.randn(2, 4, 5, 16).to(DEVICE)
    both(lambda f, *t: torch.func.vjp(f, *t)[1](do), *grouped(), causal=True, window=3)


def test_jacrev_is_that_of_by_hand():
    three = [tensor[0, :2, :2] for tensor in grouped()]
    both(lambda f, *t: torch.func.jacrev(f, (0, 1, 2))(*t), *three)


@pytest.mark.parametrize("dims", [(0, None, None), (None, 1, 0), (0, 0, 0)], ids=str)
def test_vmap_maps_any_of_its_inputs(dims):
    three = []
    for tensor, dim in zip(grouped(), dims, strict=True):
        many = torch.randn(3, *tensor.shape).to(DEVICE)
        three.append(tensor if dim is None else many.movedim(0, dim))
    both(lambda f, *t: torch.vmap(f, dims)(*t), *three, causal=True)

    def gradients(f, *t):
        mapped = torch.vmap(f, dims)
        return torch.func.grad(loss(mapped), (0, 1, 2))(*t)

    both(gradients, *three, causal=True)


def test_each_sample_has_its_own_gradient():
    queries, keys, values = grouped()
    many = torch.randn(3, *queries.shape).to(DEVICE)

    def each(f, *t):
        return torch.vmap(torch.func.grad(loss(f), (0, 1)), (0, None, None))(*t)

    both(each, many, keys, values, causal=True)


def test_vmap_may_be_nested():
    _, keys, _ = (tensor[0] for tensor in grouped())
    many, more = (
        torch.randn(3, 4, 5, 16).to(DEVICE),
        torch.randn(2, 2, 7, 16).to(DEVICE),
    )
    both(
        lambda f, *t: torch.vmap(torch.vmap(f, (None, None, 0)), (0, None, None))(*t),
        many, keys, more,
    )  # fmt: skip


SECOND = {
    "autograd": lambda f, x: torch.autograd.grad(
        torch.autograd.grad(f(x), x, create_graph=True)[0].sum(), x
    ),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(
        x
    ),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's
@pytest.mark.parametrize("ask", SECOND.values(), ids=SECOND.keys())
def test_more_than_a_first_derivative_is_refused(ask):
    queries, keys, values = some_tensors((1, 1, 1, 2, 2))
    f = lambda q: triton_attend(q, keys, values).sin().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=said("triton_attend", "first derivative")):
        ask(f, queries)


# In a module


def test_a_module_takes_it_in_the_place_of_attend():
    module = MultiHeadAttention(3, 32, 11, 0.0, 2).to(DEVICE)
    twin = MultiHeadAttention(3, 32, 11, 0.0, 2, attend=triton_attend).to(DEVICE)
    assert_twins(module, twin, torch.randn(2, 7, 3).to(DEVICE))


def test_the_future_does_not_leak():
    module = MultiHeadAttention(3, 32, 11, 0.0, 2, attend=triton_attend).to(DEVICE)
    assert future_leak(module, torch.randn(2, 7, 3).to(DEVICE)) == 0


# What a GPU would be given, without one

DRY = """
import torch
import triton
from triton.backends.compiler import GPUTarget

from attention.speed import flash_triton


class Driver:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_benchmarker(self):
        return lambda launch, quantiles: (launch(), [1.0, 1.0, 1.0])[1]


launches, run, compiling = [], triton.JITFunction.run, False


def dry(kernel, *arguments, grid, warmup, **constants):
    kind = constants["BLOCK_M"], constants["BLOCK_N"], constants.get("num_warps", 4)
    launches.append((kernel.__name__, grid(constants), *kind))
    if compiling:
        found = run(kernel, *arguments, grid=grid, warmup=True, **constants)
        read, ptx = arguments[0][0].dtype, found.asm["ptx"]
        print("compiled", kernel.__name__, read, ".target sm_90" in ptx)


triton.runtime.driver.set_active(Driver())
triton.JITFunction.run = dry
flash_triton._import_triton()


def launch(tile):
    three = [torch.zeros(2, h, 100, 16, dtype=torch.bfloat16) for h in (6, 3, 3)]
    three = [tensor.requires_grad_() for tensor in three]
    form = flash_triton._Kernels(0.25, True, None, tile)
    context, _ = flash_triton.TwoPasses.apply(*three, form)
    context.sum().backward()


launch(None)
for name in ("_forward_kernel", "_queries_kernel", "_keys_kernel"):
    tried = {entry for entry in launches if entry[0] == name}
    print(name, sorted({grid for _, grid, height, *_ in tried if height == 64}))
*_, heights, widths, warps = map(set, zip(*launches, strict=True))
print("tried", sorted(heights), sorted(widths), sorted(warps))
compiling = True
launch((32, 32))
"""


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """What is launched and compiled in a process that believes to be on a GPU."""
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    env.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", DRY]
    run = subprocess.run(command, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


def test_the_kernels_compile_for_a_gpu(dry_run):
    compiled = [line for line in dry_run if line.startswith("compiled")]
    names = ("_forward_kernel", "_queries_kernel", "_keys_kernel")
    assert compiled == [f"compiled {name} torch.bfloat16 True" for name in names]


def test_every_tile_that_is_tried_has_its_number_of_programs(dry_run):
    # 12 heads with two bands of queries; 6 key heads with one or two bands of keys
    assert "_forward_kernel [(24,)]" in dry_run
    assert "_queries_kernel [(24,)]" in dry_run
    assert "_keys_kernel [(6,), (12,)]" in dry_run


def test_all_that_is_tried_is_a_power_of_two(dry_run):
    heights = widths = [32, 64, 128]
    assert f"tried {heights} {widths} {[4, 8]}" in dry_run  # and so are the warps


def test_heavy_bands_come_first():
    global band_of, tl  # a kernel sees no local names
    import triton
    import triton.language as tl

    flash_triton._import_triton()
    band_of = flash_triton._band

    @triton.jit
    def kernel(bands, length, HEIGHT: tl.constexpr, CAUSAL: tl.constexpr):
        band, head = band_of(length, HEIGHT, CAUSAL)
        tl.store(bands + tl.program_id(0), band * 10 + head)

    bands = torch.zeros(6, dtype=torch.int32).to(DEVICE)
    kernel[(6,)](bands, 37, 16, True)
    assert bands.tolist() == [20, 10, 0, 21, 11, 1]
    kernel[(6,)](bands, 37, 16, False)
    assert bands.tolist() == [0, 10, 20, 1, 11, 21]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU")
@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str
)
def test_on_a_gpu_the_tuned_kernels_err_at_most_twice_as_much_as_by_hand(dtype, width):
    tensors = some_tensors((2, 6, 2, 1000, 1000), width, dtype)
    do = torch.randn(2, 6, 1000, width).to(DEVICE, dtype)
    exact = results(by_hand, tensors, do, torch.float64, causal=True)
    ours = results(triton_attend, tensors, do, causal=True)
    plain = results(by_hand, tensors, do, causal=True)
    for one, other, truth in zip(ours, plain, exact, strict=True):
        assert (one - truth).abs().mean() <= 2 * (other - truth).abs().mean()


# Misfits


def change(**changes):
    queries, keys, values = some_tensors((2, 3, 3, 5, 7))
    return {"queries": queries, "keys": keys, "values": values} | changes


def three(*shape, dtype=torch.float32):
    tensor = torch.zeros(shape, dtype=dtype, device=DEVICE)
    return {"queries": tensor, "keys": tensor, "values": tensor}


BAD = {
    "lengths differ": (
        lambda: change(values=torch.randn(2, 3, 2, 16).to(DEVICE)),
        said("keys and values", "one length", "got", "7 and 2"),
    ),
    "batches differ": (
        lambda: change(queries=torch.randn(5, 3, 5, 16).to(DEVICE)),
        said("broadcast", "got", "(5, 3), (2, 3), (2, 3)"),
    ),
    "heads are no multiple": (
        lambda: change(queries=torch.randn(2, 7, 5, 16).to(DEVICE)),
        said("heads", "got", "(2, 7), (2, 3), (2, 3)"),
    ),
    "one axis": (
        lambda: change(values=torch.randn(7).to(DEVICE)),
        said("values", "got", "(7,)"),
    ),
    "more queries than keys": (
        lambda: change(queries=torch.randn(2, 3, 11, 16).to(DEVICE), causal=True),
        said("causal=True", "got", "11", "7"),
    ),
    "an odd width": (
        lambda: three(2, 3, 5, 48),
        said("one width among", "128", "got", "48"),
    ),
    "values of another width": (
        lambda: change(values=torch.randn(2, 3, 7, 32).to(DEVICE)),
        said("one width among", "128", "got", "16 and 32"),
    ),
    "float64": (
        lambda: three(2, 3, 5, 16, dtype=torch.float64),
        said("float16", "bfloat16", "float32", "got", "float64"),
    ),
    "a mask": (
        lambda: change(mask=torch.ones(5, 7, dtype=torch.bool)),
        said("mask", "none", "got", "(5, 7)"),
    ),
    "a window that is not causal": (
        lambda: change(window=3),
        said("window", "got", "3", "causal=False"),
    ),
    "no window": (
        lambda: change(causal=True, window=0),
        said("window", "at least 1", "got", "0"),
    ),
    "a window of truth": (
        lambda: change(causal=True, window=True),
        said("window", "got", "True"),
    ),
    "dropout": (
        lambda: change(dropout_p=0.1),
        said("dropout_p", "0", "got", "0.1"),
    ),
    "a tile of 48": (
        lambda: change(tile=(48, 16)),
        said("tile", "(BLOCK_M, BLOCK_N)", "256", "got", "(48, 16)"),
    ),
    "a tile of one side": (
        lambda: change(tile=(16,)),
        said("tile", "(BLOCK_M, BLOCK_N)", "got", "(16,)"),
    ),
}


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_a_misfit_is_refused_and_both_sides_are_named(as_importer, make, message):
    with pytest.raises(ValueError, match=message):
        triton_attend(**make())


def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(flash_triton, "_interpreted", lambda: False)
    queries = torch.zeros(2, 5, 16)
    must = said("device", "CUDA", "TRITON_INTERPRET=1", "got", "cpu")
    with pytest.raises(ValueError, match=must):
        triton_attend(queries, queries, queries)


def test_the_interpreter_is_chosen_once(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1" if DEVICE == "cuda" else "0")
    with pytest.raises(RuntimeError, match="must not change after Triton is imported"):
        triton_attend(*some_tensors((1, 1, 1, 2, 2)))


# In graphs.


class Tiled(torch.nn.Module):
    def forward(self, queries, keys, values):
        return triton_attend(queries, keys, values, causal=True, tile=(16, 16))


@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_a_graph_of_it_gives_other_tensors_their_own_contexts(as_importer, traced):
    graph, others = traced(Tiled(), *some_tensors()), some_tensors()
    torch.testing.assert_close(graph(*others), Tiled()(*others))


def test_its_operator_keeps_what_pytorch_asks_of_one():
    form = flash_triton._Kernels(0.5, True, None, (16, 16))
    opcheck(torch.ops.attention.triton_attend, (*some_tensors(), None, None, *form))

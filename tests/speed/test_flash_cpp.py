"""Flash attention in C++: what by hand gives, forward and backward, compiled once."""

import os
import platform
import re
import shutil
import subprocess
import sys
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from examples import TRACERS, said
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils import cpp_extension

from attention import (
    Attention,
    KVCache,
    MultiHeadAttention,
    RelativeBias,
    attend,
    attention_weights,
    cpp_attend,
    document_mask,
    flash_attend,
    merge_states,
)
from attention.speed import flash_cpp

if shutil.which(os.environ.get("CXX", "c++")) is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

DTYPES = {"float32": 1.0, "float64": 1.0, "bfloat16": 1.1, "float16": 1.1}


def draw(sizes=(2, 4, 2, 37, 53), widths=(16, 16), dtype=torch.float32):
    """Queries, keys and values: batch, heads, key heads, two lengths; two widths."""
    batch, heads, groups, num_queries, num_keys = sizes
    shapes = (heads, num_queries, widths[0]), *((groups, num_keys, w) for w in widths)
    return [torch.randn(batch, *s).to(dtype).requires_grad_() for s in shapes]


def by_hand(queries, keys, values, mask=None, **options):
    shared = queries.shape[-3] // values.shape[-3] if queries.ndim > 2 else 1
    values = values.repeat_interleave(shared, dim=-3) if shared > 1 else values
    return attention_weights(queries, keys, mask, **options) @ values


def results(form, tensors, do, dtype=None, **options):
    """Context and gradients; `dtype` is what they are computed in."""
    tensors = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    context = form(*tensors, **options)
    return context, *torch.autograd.grad(context, tensors, do.to(context.dtype))


def same(tensors, close=None, **options):
    """Does the kernel give what by hand gives, forward and backward?"""
    do = torch.randn(
        *tensors[0].shape[:-1], tensors[2].shape[-1], dtype=tensors[0].dtype
    )
    ours = results(cpp_attend, tensors, do, **options)
    wanted = results(by_hand, tensors, do, **options)
    torch.testing.assert_close(ours, wanted, **close or {})


SIZES = {
    "as many queries as keys": (1, 1, 1, 37, 37),
    "the last queries": (1, 1, 1, 5, 271),
    "one query": (1, 2, 1, 1, 537),
    "one query for eight heads": (2, 8, 1, 1, 401),
    "one of each": (1, 1, 1, 1, 1),
    "whole tiles": (1, 1, 1, 64, 256),
    "one more than whole tiles": (1, 1, 1, 65, 257),
    "several bands and blocks": (1, 2, 2, 211, 401),
    "shared heads in one band": (1, 6, 2, 11, 237),
    "shared heads in several bands": (2, 4, 2, 131, 131),
    "three queries of nine heads": (1, 9, 3, 3, 1601),
    "one query for thirteen heads": (1, 13, 1, 1, 301),
    "the most rows that are few": (1, 4, 1, 4, 129),
    "one row more": (1, 17, 1, 1, 129),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_it_equals_by_hand_forward_and_backward(sizes, causal):
    same(draw(sizes), causal=causal)


@pytest.mark.parametrize(
    "widths", [(1, 1), (3, 2), (33, 17), (64, 80), (128, 65), (40, 700)]
)
def test_any_width_will_do_and_values_may_have_another(widths):
    same(draw((1, 2, 1, 37, 201), widths), causal=True)


@pytest.mark.parametrize("window", [1, 16, 255, 256, 257, 1000])
@pytest.mark.parametrize("earlier", [0, 1, 63, 64, 191, 200])
def test_wherever_an_edge_meets_a_tile_all_is_seen_and_no_more(earlier, window):
    same(draw((1, 1, 1, 101, 101 + earlier), (3, 2)), causal=True, window=window)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 3001), (1, 3, 1, 150, 403)], ids=str)
def test_the_number_of_threads_changes_no_more_than_rounding(sizes, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        same(draw(sizes), causal=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("seed", range(200))
def test_random_calls_equal_by_hand(seed):
    tensors, options = random_call(seed)
    same(tensors, close={"rtol": 1e-4, "atol": 2e-5}, **options)  # sums of 3,000 terms


def random_call(seed, most=260):
    """Some tensors and options; anything may meet anything."""
    torch.manual_seed(seed)

    def up_to(n):
        return int(torch.randint(1, n + 1, ()))

    groups, shared, batch = up_to(3), up_to(9), up_to(2)
    num_keys = up_to(most)
    causal = up_to(2) == 1
    num_queries = up_to(num_keys) if causal else up_to(most)
    num_queries = 1 if up_to(4) == 1 else num_queries
    sizes = (batch, groups * shared, groups, num_queries, num_keys)
    dtype = torch.float64 if up_to(5) == 1 else torch.float32
    tensors = draw(sizes, (up_to(70), up_to(70)), dtype)
    options = {"causal": causal}
    if causal and up_to(3) == 1:
        options["window"] = up_to(num_keys)
    table = (num_queries, num_keys)
    if up_to(3) == 1:
        options["mask"] = torch.rand(table) < torch.rand(())
    if up_to(3) == 1:
        options["bias"] = torch.randn(groups * shared, *table, dtype=dtype)
    if up_to(3) == 1:
        options["scale"] = float(torch.randn(())) / tensors[0].shape[-1] ** 0.5
    return tensors, options


@pytest.mark.parametrize("vectors", ["AVX512", "AVX2", "DEFAULT"])
@pytest.mark.parametrize("pairs", [True, False], ids=["can", "cannot"])
def test_bfloat16_is_multiplied_as_it_is_where_the_cpu_can(monkeypatch, vectors, pairs):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: pairs)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    one = torch.ones(1, dtype=torch.bfloat16)
    native = pairs and vectors == "AVX512"  # and no less, if torch is told so
    assert flash_cpp._factor(one, None) == (torch.bfloat16 if native else torch.float32)
    assert flash_cpp._factor(one, one) == torch.float32, "a bias is added in 32 bits"
    assert flash_cpp._factor(one.half(), None) == torch.float32


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_in_16_bits_it_errs_no_more_than_the_fused_call(name, causal):
    dtype = getattr(torch, name)
    torch.manual_seed(1)
    tensors = draw((1, 2, 2, 301, 301), (64, 64), dtype)
    do = torch.randn(1, 2, 301, 64).to(dtype)
    exact = results(by_hand, tensors, do, torch.float64, causal=causal)
    ours = results(cpp_attend, tensors, do, causal=causal)
    fused = results(attend, tensors, do, causal=causal)
    for one, other, truth in zip(ours, fused, exact, strict=True):
        assert one.dtype == dtype
        assert (one - truth).abs().mean() <= 1.1 * (other - truth).abs().mean()


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_numbers_of_16_bits_come_and_go_as_torch_has_them(name):
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    numbers = bits.view(getattr(torch, name)).view(1, 1, 1, -1)
    zero = torch.zeros(1, 1, 1, 1, dtype=numbers.dtype)
    torch.testing.assert_close(
        cpp_attend(zero, zero, numbers), numbers, rtol=0, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_what_lies_between_numbers_of_16_bits_is_rounded_to_the_nearest(name):
    torch.manual_seed(2)
    dtype = getattr(torch, name)
    values = (torch.randn(1, 1, 2, 4000) * torch.rand(4000).mul(-30).exp2()).to(dtype)
    query, keys = torch.zeros(1, 1, 1, 1).to(dtype), torch.zeros(1, 1, 2, 1).to(dtype)
    mean = values.float().mean(dim=-2, keepdim=True).to(dtype)
    torch.testing.assert_close(cpp_attend(query, keys, values), mean, rtol=0, atol=0)


def test_the_compiler_is_told_a_standard_in_which_torchs_own_files_compile():
    torchs = Path(cpp_extension.__file__).read_text("utf-8")
    asked = max(map(int, re.findall(r"-std=c\+\+(\d+)", torchs)))
    flags = flash_cpp._flags(torch.float32, torch.float32)
    (told,) = re.findall(r"-std=c\+\+(\d+)", " ".join(flags))
    assert int(told) >= asked


def test_no_line_of_the_kernel_is_wider_than_the_page():
    kernel = files("attention.speed").joinpath("flash_cpp.cpp").read_text("utf-8")
    assert max(map(len, kernel.splitlines())) <= 88


def test_the_exponential_is_right_wherever_a_weight_counts():
    score = torch.linspace(-80, 0, 40001, dtype=torch.float64)
    keys = torch.stack([torch.zeros_like(score), score], dim=-1)[..., None].float()
    query, values = torch.ones(40001, 1, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    context = cpp_attend(query, keys, values.expand(40001, 2, 2), scale=1.0)
    share = context[:, 0, 1].double() / context[:, 0, 0].double()
    error = (share / keys[:, 1, 0].double().exp() - 1).abs()
    assert error.max() < 1e-5  # the score itself is a float: 80 has steps of 8e-6


def test_gradcheck_passes_with_all_options_at_once():
    tensors = draw((1, 4, 2, 5, 7), (3, 2), torch.float64)
    bias = torch.randn(4, 5, 7, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(5, 7) > 0.3

    def f(q, k, v, b):
        options = {"causal": True, "window": 4, "scale": 0.7, "return_lse": True}
        context, lse = cpp_attend(q, k, v, mask, bias=b, **options)
        return context, lse.exp()

    torch.autograd.gradcheck(f, (*tensors, bias))


def test_the_logsumexp_merges_parts_of_the_keys():
    q, k, v = draw((1, 4, 2, 11, 403))
    parts = [
        cpp_attend(q, k[:, :, j], v[:, :, j], return_lse=True)
        for j in (slice(0, 200), slice(200, None))
    ]
    merged, lse = merge_states(*parts[0], *parts[1])
    torch.testing.assert_close(merged, by_hand(q, k, v))
    scores = q @ k.repeat_interleave(2, dim=1).mT / 4
    torch.testing.assert_close(lse, scores.logsumexp(dim=-1))


@pytest.mark.parametrize("num_queries", [1, 2, 30, 100])
def test_a_query_that_sees_nothing_gets_zeros_and_zero_gradients(num_queries):
    tensors = draw((1, 2, 1, num_queries, 300))
    mask = torch.rand(num_queries, 300) > 0.5
    mask[-1] = False
    context, lse = cpp_attend(*tensors, mask, return_lse=True)
    assert (context[:, :, -1] == 0).all()
    assert lse[:, :, -1].isneginf().all()
    assert lse[:, :, :-1].isfinite().all()
    (dq,) = torch.autograd.grad(context.sum(), tensors[:1])
    assert (dq[:, :, -1] == 0).all()
    same(tensors, mask=mask)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_queries", [1, 40])
def test_what_is_no_number_gives_none_and_stays_in_its_row(number, num_queries):
    q, k, v = (t.detach() for t in draw((1, 2, 2, num_queries, 300)))
    q[0, 1, -1, 3] = number
    context = cpp_attend(q, k, v)
    assert context[0, 1, -1].isnan().all()
    context[0, 1, -1] = 0
    assert context.isfinite().all()


@pytest.mark.parametrize("num_queries", [1, 40])
def test_a_key_that_is_no_number_has_no_effect_where_it_is_hidden(num_queries):
    q, k, v = (t.detach() for t in draw((1, 2, 2, num_queries, 300)))
    mask = torch.ones(300, dtype=torch.bool)
    mask[7] = False
    wanted = cpp_attend(q, k, v, mask.expand(num_queries, 300))
    k[:, :, 7] = torch.nan
    torch.testing.assert_close(
        cpp_attend(q, k, v, mask.expand(num_queries, 300)), wanted
    )
    assert cpp_attend(q, k, v).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_queries", [1, 40])
def test_a_query_that_sees_nothing_gets_zeros_though_a_value_is_no_number(
    num_queries, number, dtype
):
    q, k, v = (t.detach() for t in draw((1, 2, 2, num_queries, 300), dtype=dtype))
    v[:, :, 7] = number
    mask = torch.ones(num_queries, 300, dtype=torch.bool)
    mask[0] = False
    context, lse = cpp_attend(q, k, v, mask, return_lse=True)
    assert (context[:, :, 0] == 0).all()
    assert lse[:, :, 0].isneginf().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("num_queries", [1, 4, 40])
def test_a_row_whose_biases_are_all_the_least_number_has_even_weights(
    num_queries, dtype
):
    """As in a mask of floats for padding on the left; only -inf hides."""
    tensors = draw((2, 4, 2, num_queries, 53), dtype=dtype)
    bias = torch.randn(4, num_queries, 53)
    bias[:, 0] = bias[..., :2] = torch.finfo(torch.float32).min
    bias = bias.to(torch.promote_types(dtype, torch.float32))
    context, lse = cpp_attend(*tensors, bias=bias, return_lse=True)
    _, must = flash_attend(*tensors, bias=bias, return_lse=True)
    torch.testing.assert_close(lse, must)
    near = {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(context, by_hand(*tensors, bias=bias), **near)
    do = torch.randn(context.shape)
    do[..., 0, :] = 0  # as for padding: its logsumexp has lost the number of keys
    wanted = results(by_hand, tensors, do, bias=bias)
    torch.testing.assert_close(
        results(cpp_attend, tensors, do, bias=bias), wanted, **near
    )


def test_very_large_scores_overflow_no_exponential():
    tensors = [t.detach() * 100 for t in draw((1, 1, 1, 5, 203), dtype=torch.float64)]
    wanted = by_hand(*tensors, causal=True)
    context = cpp_attend(*(t.float() for t in tensors), causal=True)
    torch.testing.assert_close(context.double(), wanted, rtol=0.01, atol=0.1)


def test_tiles_of_other_documents_are_never_multiplied():
    q, k, v = (t.detach() for t in draw((1, 1, 1, 768, 768)))
    mask = document_mask(torch.arange(3).repeat_interleave(256)[None])
    wanted = by_hand(q, k, v, mask=mask)
    v[:, :, :256] = torch.nan  # the first document's
    context = cpp_attend(q, k, v, mask)
    torch.testing.assert_close(context[:, :, 256:], wanted[:, :, 256:])


def test_tensors_may_lie_in_any_order():
    torch.manual_seed(3)
    q, k, v = (torch.randn(2, 130, 3, 16).transpose(1, 2) for _ in range(3))
    plain = [t.contiguous() for t in (q, k, v)]
    do = torch.randn(2, 130, 3, 16).transpose(1, 2)
    ours = results(cpp_attend, (q, k, v), do, causal=True)
    torch.testing.assert_close(ours, results(by_hand, plain, do, causal=True))
    turned = torch.randn(1, 1, 16, 130).mT
    torch.testing.assert_close(
        cpp_attend(turned, turned, turned), by_hand(turned, turned, turned)
    )


def test_of_a_tensor_without_numbers_it_gives_the_shape():
    with FakeTensorMode():
        q, k, v = draw()
        context, lse = cpp_attend(q, k, v, return_lse=True)
        context.sum().backward()
    assert (context.shape, lse.shape) == ((2, 4, 37, 16), (2, 4, 37))
    assert isinstance(context, FakeTensor)
    assert q.grad.shape == q.shape


def test_a_tensor_whose_numbers_lie_elsewhere_is_refused():
    """A wrapper, as DTensor is: its address is zero."""

    class Wrapper(torch.Tensor):
        @staticmethod
        def __new__(cls):
            return torch.Tensor._make_wrapper_subclass(cls, (1, 2, 5, 32))

        @classmethod
        def __torch_dispatch__(cls, function, types, inputs=(), options=None):
            raise AssertionError(function)

    with pytest.raises(ValueError, match="expected tensors that lie in memory"):
        flash_cpp._matrix(Wrapper())


def test_two_calls_give_the_same_bits():
    tensors = draw((1, 3, 1, 211, 401))
    do = torch.randn(1, 3, 211, 16)
    first, again = (results(cpp_attend, tensors, do, causal=True) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("sizes", [(1, 2, 2, 0, 5), (1, 2, 2, 5, 0), (0, 2, 2, 3, 5)])
def test_nothing_to_see_or_nobody_to_see_it(sizes):
    context, lse = cpp_attend(*draw(sizes), return_lse=True)
    assert context.shape == (*sizes[:2], sizes[3], 16)
    assert (context == 0).all()
    assert lse.isneginf().all()


def test_a_module_takes_it_with_a_learned_bias_and_a_cache():
    torch.manual_seed(4)
    options = {"num_kv_heads": 2, "bias": RelativeBias(4)}
    layer = Attention(16, 16, 4, attend=cpp_attend, **options)
    twin = Attention(16, 16, 4, **options)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 131, 16)
    torch.testing.assert_close(layer(x), twin(x))
    found, wanted = (
        torch.autograd.grad(each(x).sin().sum(), list(each.parameters()))
        for each in (layer, twin)
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)  # sums of 262 rows
    cache = KVCache()
    steps = [layer(part, cache=cache) for part in x.split([100, 1, 30], dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), twin(x))


def test_the_companions_layer_takes_it():
    torch.manual_seed(5)
    layer = MultiHeadAttention(8, 8, 64, 0.0, num_heads=2, attend=cpp_attend)
    twin = MultiHeadAttention(8, 8, 64, 0.0, num_heads=2)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 50, 8)
    torch.testing.assert_close(layer(x), twin(x))


def test_under_vmap_each_sample_has_its_gradient():
    samples, (_, k, v) = torch.randn(5, 2, 11, 16), draw((1, 2, 2, 11, 13))

    def of_each(form):
        def loss(q):
            return form(q, k[0].detach(), v[0].detach()).sin().sum()

        return torch.vmap(torch.func.grad(loss))(samples)

    torch.testing.assert_close(of_each(cpp_attend), of_each(by_hand))


REFUSED = {
    "dropout": ({"dropout_p": 0.1}, "dropout_p", "0, for cpp_attend"),
    "a window without causal": ({"window": 3}, "window", "causal=True"),
    "a mask of numbers": ({"mask": torch.ones(37, 53)}, "mask", "booleans"),
}


@pytest.mark.parametrize(("options", *"ab"), REFUSED.values(), ids=REFUSED.keys())
def test_what_it_cannot_do_is_refused_in_words(options, a, b, as_importer):
    with pytest.raises(ValueError, match=said(a, b)):
        cpp_attend(*draw(), **options)


def test_a_dtype_that_it_does_not_know_is_named():
    tensors = [t.detach().to(torch.float8_e4m3fn) for t in draw()]
    with pytest.raises(ValueError, match=said("16 bits", "got", "float8_e4m3fn")):
        cpp_attend(*tensors)


def test_a_second_derivative_is_refused():
    tensors = draw()
    slope = torch.autograd.grad(cpp_attend(*tensors).sum(), tensors, create_graph=True)
    with pytest.raises(RuntimeError, match="cpp_attend"):
        slope[0].sum().backward()


# In graphs.


class Cpp(torch.nn.Module):
    def forward(self, queries, keys, values):
        return cpp_attend(queries, keys, values, causal=True)


def by_make_fx(module, *inputs):
    return make_fx(module)(*inputs)


@pytest.mark.parametrize(
    "traced", [*TRACERS.values(), by_make_fx], ids=[*TRACERS, "make_fx"]
)
def test_a_graph_of_it_gives_other_tensors_their_own_contexts(as_importer, traced):
    graph = traced(Cpp(), *(tensor.detach() for tensor in draw()))
    others = [tensor.detach() for tensor in draw()]
    torch.testing.assert_close(graph(*others), Cpp()(*others))


@pytest.mark.parametrize("bias", [None, torch.randn(2, 4, 37, 53, requires_grad=True)])
def test_its_operator_keeps_what_pytorch_asks_of_one(bias):
    tensors, form = draw(widths=(32, 64)), flash_cpp._Kernel(0.5, True, None)
    opcheck(torch.ops.attention.cpp_attend, (*tensors, bias, None, *form))


# The compiled file.


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


CALL = "import torch, attention; attention.cpp_attend(*torch.ones(3, 2, 2))"


def test_without_a_compiler_all_can_be_imported_and_one_function_says_what_it_needs():
    code = f"{CALL.split(';')[0]}\ntry: {CALL.split(';')[1]}\n"
    code += "except RuntimeError as error: print(error)"
    done = run(code, CXX="no-such-compiler")
    need = "cpp_attend needs a C++ compiler, g++ or clang++: expected "
    assert done.stdout.startswith(need + "'no-such-compiler'"), done.stderr
    assert done.stdout.count("\n") == 1


def test_without_file_locks_as_on_windows_it_says_in_a_sentence_where_it_runs(
    monkeypatch,
):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    flash_cpp._library.cache_clear()
    with pytest.raises(RuntimeError) as refused:
        cpp_attend(*draw())
    must = "cpp_attend: expected a system with fcntl, such as Linux or macOS, got "
    assert str(refused.value) == f"{must}Windows"


LITTLE_ROOM = """
import resource, torch, attention
q, k, v = torch.ones(1, 17, 64), *torch.ones(2, 1, 2**18, 64)
attention.cpp_attend(q, k[:, :300], v[:, :300])
with open("/proc/self/statm") as pages:
    held = int(pages.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**25, -1))  # it wants 2**27 bytes
try:
    attention.cpp_attend(q, k, v)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_what_went_wrong_in_the_kernel_is_told_in_a_line():
    done = run(LITTLE_ROOM)
    assert done.stdout.startswith("cpp_attend: "), done.stderr
    assert "allocate memory" in done.stdout
    assert done.stdout.count("\n") == 1


def test_importing_compiles_nothing(tmp_path):
    done = run("import attention", TORCH_EXTENSIONS_DIR=str(tmp_path), CXX="false")
    assert (done.returncode, list(tmp_path.iterdir())) == (0, []), done.stderr


FAKE = """#!/bin/sh
# A compiler that is slow, and counts its runs.
case "$1" in --version) echo {version}; exit;; esac
cat > /dev/null
echo run >> {folder}/runs
while [ "$1" != "-o" ]; do shift; done
echo half > "$2"
sleep 0.3
cp {real} "$2"
"""


def fake_compiler(folder, version="one"):
    real = flash_cpp._library(torch.float32, torch.float32)._name
    compiler = folder / "fake"
    compiler.write_text(FAKE.format(folder=folder, real=real, version=version))
    compiler.chmod(0o755)
    return {"CXX": str(compiler), "TORCH_EXTENSIONS_DIR": str(folder / "built")}


def test_two_processes_at_once_compile_it_once_and_none_loads_a_half(tmp_path):
    environment = os.environ | fake_compiler(tmp_path)
    both = [
        subprocess.Popen([sys.executable, "-c", CALL], env=environment)
        for _ in range(2)
    ]
    assert [each.wait() for each in both] == [0, 0]
    assert (tmp_path / "runs").read_text() == "run\n"
    names = {path.suffix for path in (tmp_path / "built/attention").iterdir()}
    assert names == {".so", ".lock"}


def test_another_compiler_torch_text_or_cpu_makes_another_file(tmp_path, monkeypatch):
    compiler = fake_compiler(tmp_path)["CXX"]
    flags = flash_cpp._flags(torch.float32, torch.float32)
    names = [flash_cpp._identity(compiler, flags, "text")]
    assert names == [flash_cpp._identity(compiler, flags, "text")]
    names.append(flash_cpp._identity(compiler, flags, "another text"))
    half = flash_cpp._flags(torch.float16, torch.float32)
    names.append(flash_cpp._identity(compiler, half, "text"))
    fake_compiler(tmp_path, version="two")
    names.append(flash_cpp._identity(compiler, flags, "text"))
    monkeypatch.setattr(torch, "__version__", "0")
    names.append(flash_cpp._identity(compiler, flags, "text"))
    monkeypatch.setattr(flash_cpp, "_cpu", lambda: "another")
    names.append(flash_cpp._identity(compiler, flags, "text"))
    assert len(set(names)) == 6


def test_what_the_compiler_says_is_passed_on(tmp_path):
    told = flash_cpp._compiler(), flash_cpp._flags(torch.float32, torch.float32)
    with pytest.raises(RuntimeError, match="cannot compile it") as error:
        flash_cpp._build(*told, "nonsense;", tmp_path / "x.so")
    assert "nonsense" in str(error.value)
    assert not list(tmp_path.glob("*.so"))


def test_options_settled_before_are_those_of_the_call():
    tensors = draw()
    form = partial(cpp_attend, scale=0.3)
    torch.testing.assert_close(form(*tensors), by_hand(*tensors, scale=0.3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_scale_below_zero_rounds_no_query_of_16_bits(dtype):
    queries, keys, values = draw(dtype=dtype)
    minus = cpp_attend(-30 * queries, keys, values, scale=0.7)
    assert torch.equal(cpp_attend(30 * queries, keys, values, scale=-0.7), minus)


def test_values_without_a_width_give_contexts_without_one():
    queries = torch.randn(1, 6, 2, 16, requires_grad=True)
    values = torch.randn(1, 6, 2, 0)
    context, lse = cpp_attend(queries, queries, values, return_lse=True)
    expected = flash_attend(queries, queries, values, return_lse=True)
    assert context.shape == (1, 6, 2, 0)
    torch.testing.assert_close(lse, expected[1])
    context.sum().backward()
    assert not queries.grad.any()

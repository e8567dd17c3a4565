"""Inputs that once went wrong, each beside others of its kind.

Public bug reports, and other people's tests, gave them. The kinds are properties in
`conformance/`; here the inputs stand as they came.
"""

import io
import xml.dom.minidom
from functools import partial

import pytest
import torch
from examples import said
from torch import nn
from torch.nn import functional as F

from attention import (
    GPT,
    Attention,
    CausalAttention,
    CrossAttention,
    LanguageModel,
    MultiHeadAttention,
    RelativeBias,
    Rotary,
    SelfAttention,
    and_masks,
    attend,
    attention_entropy,
    attention_weights,
    cpp_attend,
    flash_attend,
    future_leak,
    padding_mask,
    ring_attend,
    show_weights,
    tree_attend,
    triton_attend,
    ulysses_attend,
    weights_of,
)
from conformance.handed import WithMethod, WithNone, linear, quantized, rotary
from conformance.hides import Products

equal = torch.testing.assert_close


def some(*lead, dtype=torch.float32, width=16):
    """Queries, keys and values of one shape."""
    return [torch.randn(*lead, width, dtype=dtype) for _ in range(3)]


def by_hand(queries, keys, values, mask=None, **options):
    return attention_weights(queries, keys, mask, **options) @ values


FORMS = pytest.mark.parametrize("form", [attend, flash_attend, by_hand])

# What tells whether a model sees the future


def backwards(x):
    """Output 0 is the last input."""
    return x.flip(-2)


@pytest.mark.parametrize("seed", range(3))
def test_a_leak_is_found_in_an_input_that_is_the_noise_of_a_seed(seed):
    torch.manual_seed(seed)
    assert future_leak(backwards, torch.randn(2, 7, 3)) > 0.1


@pytest.mark.parametrize("x", [torch.zeros(7, 3), torch.full((2, 7, 3), 1e6)])
def test_a_leak_is_found_in_an_input_that_is_all_the_same(x):
    last = torch.arange(7.0)[:, None]
    assert future_leak(lambda x: backwards(x) * last.flip(0), x) > 0


def test_a_leak_is_found_though_the_output_is_one_buffer_each_time():
    buffer = torch.empty(2, 7, 3)
    assert future_leak(lambda x: buffer.copy_(backwards(x)), torch.randn(2, 7, 3)) > 0.1


@pytest.mark.parametrize("way", [torch.Tensor.mul_, torch.Tensor.add_])
def test_a_model_that_works_in_place_is_not_accused(way):
    x = torch.randn(2, 7, 3)
    before = x.clone()
    assert future_leak(lambda x: way(x, 2), x) == 0
    assert torch.equal(x, before)


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    future_leak(backwards, torch.randn(7, 3, generator=torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_leak_from_any_place_to_any_earlier_one_is_found():
    for source in range(1, 5):
        for target in range(source):

            def leaking(x, source=source, target=target):
                place = torch.arange(5)[:, None] == target
                return x + place * x[..., source : source + 1, :]

            assert future_leak(leaking, torch.randn(5, 2)) > 0.01


def test_whole_numbers_have_no_small_change_and_are_refused(as_importer):
    with pytest.raises(ValueError, match=said("x", "int64")):
        future_leak(backwards, torch.ones(5, 2, dtype=torch.int64))


# Lengths on both sides of 16 keys, where a CPU's kernel changes

EXPORTED = {  # modules, and the width of each input; 0 stands for ids
    "one head": (lambda: SelfAttention(6, 8), [6]),
    "causal": (lambda: CausalAttention(6, 8, 64), [6]),
    "many heads": (lambda: MultiHeadAttention(6, 8, 64, 0.0, 2), [6]),
    "cross": (lambda: CrossAttention(6, 8, 2), [6, 6]),
    "rotary": (lambda: Attention(6, 8, 2, process_heads=Rotary(4)), [6]),
    "GPT": (lambda: GPT(11, d=8, num_blocks=1, num_heads=2), [0]),
    "Llama": (lambda: LanguageModel(11, 8, 16, 1, 2), [0]),
}


def texts(widths, length):
    shape = 2, length
    return [torch.randn(*shape, w) if w else torch.randint(11, shape) for w in widths]


@pytest.mark.parametrize("name", EXPORTED)
@pytest.mark.parametrize("strict", [True, False])
def test_what_is_exported_from_one_text_takes_texts_of_any_length(
    name, strict, as_importer
):
    make, widths = EXPORTED[name]
    module, length = make().eval(), torch.export.Dim("length", min=2, max=60)
    moves, options = tuple({1: length} for _ in widths), {"strict": strict}
    given = tuple(texts(widths, 21))
    options["dynamic_shapes"] = moves
    program = torch.export.export(module, given, **options).module()
    for count in (2, 15, 16, 21, 60):
        inputs = texts(widths, count)
        equal(program(*inputs), module(*inputs))
        if widths[-1]:
            inputs[-1][0, -1] = torch.nan
            equal(program(*inputs), module(*inputs), equal_nan=True)


# What is no tensor


def weights_by_hand(queries, keys, values):
    return attention_weights(queries, keys)


EVERY_FORM = [attend, flash_attend, cpp_attend, triton_attend, ring_attend]
EVERY_FORM += [ulysses_attend, tree_attend, weights_by_hand]


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("other", [[[1.0]], torch.ones(7, 16).numpy(), None], ids=str)
def test_what_is_no_tensor_is_told_so(form, place, other, as_importer):
    inputs = some(2, 3, 7)
    inputs[place] = other
    if form is weights_by_hand and place == 2:
        return  # which takes no values
    with pytest.raises(TypeError, match=said("expected a torch.Tensor", "got")):
        form(*inputs)


@pytest.mark.parametrize("form", EVERY_FORM)
@pytest.mark.parametrize("place", range(3))
def test_a_sparse_tensor_is_told_so(form, place, as_importer):
    inputs = some(2, 3, 7)
    inputs[place] = inputs[place].to_sparse()
    if form is weights_by_hand and place == 2:
        return  # which takes no values
    with pytest.raises(TypeError, match=said("a dense tensor", "got torch.sparse_coo")):
        form(*inputs)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", EVERY_FORM)
def test_a_nested_tensor_is_told_so(form, as_importer):
    nested = torch.nested.nested_tensor([torch.randn(3, 7), torch.randn(2, 7)])
    with pytest.raises(TypeError, match=said("a dense tensor", "got a nested one")):
        form(*[nested] * 3)


# A scale that is zero or negative


@FORMS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_causal_scale_of_zero_gives_running_means(form, dtype):
    queries, keys, values = some(1, 2, 6, dtype=dtype)
    means = values.cumsum(-2) / torch.arange(1, 7, dtype=dtype)[:, None]
    equal(form(queries, keys, values, causal=True, scale=0.0), means)


@FORMS
@pytest.mark.parametrize("length", [5, 17, 40])
def test_a_causal_scale_below_zero_prefers_the_least_alike(form, length):
    queries, keys, values = some(2, 3, length)
    context = form(queries, keys, values, causal=True, scale=-0.3)
    equal(context, form(-queries, keys, values, causal=True, scale=0.3))


# A bias that is not finite where nobody looks


def steps_ahead(length):
    steps = torch.arange(float(length))
    return steps - steps[:, None]


@FORMS
def test_a_bias_that_is_infinite_one_step_ahead_is_not_seen(form):
    tensors, ahead = some(2, 3, 9), steps_ahead(9)
    bias = 1 / (1 - ahead)
    seen = bias.masked_fill(ahead > 0, 0)
    context = form(*tensors, causal=True, bias=bias)
    equal(context, by_hand(*tensors, causal=True, bias=seen))


@FORMS
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bias_that_is_hidden_by_a_mask_has_no_gradient(form, bad):
    mask = torch.ones(9, 9, dtype=torch.bool)
    mask[4] = mask[:, 7] = False  # a blind query, and a hidden key
    bias = torch.zeros(9, 9).masked_fill(~mask, bad).requires_grad_()
    tensors = [t.requires_grad_() for t in some(2, 9)]
    form(*tensors, mask, bias=bias).square().sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)
    assert bias.grad[mask].isfinite().all()
    assert (bias.grad[~mask] == 0).all()


@FORMS
def test_a_logarithm_of_a_distance_is_a_bias(form):
    tensors = some(2, 3, 9)
    bias = (1 - steps_ahead(9)).log()  # of negative numbers: nan, in the future
    context = form(*tensors, causal=True, bias=bias)
    equal(context, by_hand(*tensors, causal=True, bias=bias.nan_to_num(neginf=0)))


# Layers that are not what they were


def test_a_model_is_quantised_dynamically():
    model = nn.Sequential(MultiHeadAttention(64, 64, 16, 0.0, 4)).eval()
    x = torch.randn(2, 5, 64)
    equal(quantized(model)(x), model(x), rtol=0, atol=0.05)  # 8 bits


@pytest.mark.parametrize("kind", [WithMethod, WithNone])
def test_an_adapter_need_not_have_a_weight(kind):
    module, x = CausalAttention(4, 6, 9).eval(), torch.randn(2, 5, 4)
    expected = module(x), module.attention_weights(x)
    module.W_query = kind(module.W_query)
    equal((module(x), module.attention_weights(x)), expected)


# Autocast


def under_autocast(call, *tensors):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return call(*tensors)


def test_two_sides_may_have_two_dtypes_under_autocast():
    cross = CrossAttention(8, 8, 2).eval()
    x, read = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    context = under_autocast(cross, x.bfloat16(), read)
    equal(context.float(), cross(x, read), rtol=0, atol=0.05)  # of 8 bits


@FORMS
def test_float32_keys_meet_queries_of_16_bits_under_autocast(form):
    queries, keys, values = some(2, 5)
    context = under_autocast(form, queries.bfloat16(), keys, values)
    assert context.dtype == torch.bfloat16
    equal(context.float(), form(queries, keys, values), rtol=0, atol=0.05)


@FORMS
def test_the_length_does_not_decide_the_dtype_under_autocast(form):
    dtypes = {under_autocast(form, *some(2, n)).dtype for n in (1, 15, 16, 40)}
    assert dtypes == {torch.bfloat16}


# Derivatives by torch.func


def causal_loss(form, keys, values):
    return lambda queries: form(queries, keys, values, causal=True).square().sum()


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's own
@FORMS
@pytest.mark.parametrize(
    "transform",
    [
        torch.func.grad,
        torch.func.jacrev,
        lambda loss: lambda x: torch.func.vjp(loss, x)[1](torch.ones(())),
    ],
    ids=["grad", "jacrev", "vjp"],
)
def test_a_first_derivative_by_torch_func(form, transform):
    queries, keys, values = some(2, 5)
    (derivative,) = [transform(causal_loss(form, keys, values))(queries)]
    derivative = derivative[0] if isinstance(derivative, tuple) else derivative
    expected = torch.func.grad(causal_loss(by_hand, keys, values))(queries)
    equal(derivative, expected, rtol=1e-4, atol=1e-4)  # sums in another order


def test_gradients_of_each_sample():
    queries, keys, values = some(3, 2, 5)
    each = torch.func.vmap(torch.func.grad(causal_loss(flash_attend, keys, values)))
    expected = [torch.func.grad(causal_loss(by_hand, keys, values))(q) for q in queries]
    equal(each(queries), torch.stack(expected), rtol=1e-4, atol=1e-4)  # as above


@pytest.mark.parametrize("form", [attend, flash_attend])
def test_a_learned_bias_is_mapped_and_has_derivatives_by_torch_func(form):
    layer, x = (
        Attention(6, 6, 2, bias=RelativeBias(2), attend=form),
        torch.randn(3, 5, 6),
    )
    nn.init.normal_(layer.bias.table.weight)
    layers = {n: torch.stack([p, -p]) for n, p in layer.named_parameters()}

    def of_one(parameters):
        return torch.func.functional_call(layer, parameters, (x,))

    both = torch.func.vmap(of_one)(layers)
    for number, found in enumerate(both):
        equal(found, of_one({name: each[number] for name, each in layers.items()}))
    rows = torch.func.jacrev(layer)(x)
    equal(rows, torch.autograd.functional.jacobian(layer, x))


@pytest.mark.parametrize("form", [attend, flash_attend, cpp_attend])
def test_weights_that_are_found_are_mapped(form):
    layer, x = Attention(6, 6, 2, attend=form), torch.randn(3, 5, 6)
    equal(torch.func.vmap(layer.attention_weights)(x), layer.attention_weights(x))


def test_weights_that_are_found_of_no_numbers_are_no_numbers():
    tensors = [torch.empty(2, 5, 7, device="meta") for _ in range(3)]
    assert weights_of(flash_attend, *tensors).shape == (2, 5, 5)


# Dropout


def test_the_dropout_of_a_module_at_rest_may_be_awake():
    module, x = MultiHeadAttention(8, 8, 16, 0.5, 2).eval(), torch.randn(2, 6, 8)
    module.dropout.train()  # Monte Carlo dropout: all rests but this
    assert not torch.equal(module(x), module(x))


def test_the_dropout_of_a_module_in_training_may_rest():
    module, x = CrossAttention(8, 8, 2, dropout=0.5), torch.randn(2, 6, 8)
    module.dropout.eval()
    equal(module(x, x), module(x, x), rtol=0, atol=0)


def test_the_dropout_of_a_module_may_be_replaced():
    module, x = CausalAttention(8, 8, 16, 0.5), torch.randn(2, 6, 8)
    module.dropout = nn.Identity()
    equal(module(x), module.eval()(x))


# Pictures


@pytest.mark.parametrize(
    "token", ["\x00", "\x1b[0m", "\n", "\ufffe", "\uffff", "\ud800", "a\udfffb"]
)
def test_any_token_gives_a_picture_that_can_be_read(token):
    tokens = [token, "a"]
    bundle, _ = show_weights(torch.eye(2), tokens, tokens)._repr_mimebundle_()
    xml.dom.minidom.parse(io.BytesIO(bundle["image/svg+xml"].encode()))


# Half precision


def errors(queries, keys, values, **options):
    """Of the oracle, and of the fused call, in 16 bits."""
    wide = {name: option.double() for name, option in options.items()}
    exact = by_hand(queries.double(), keys.double(), values.double(), **wide)
    return [
        (form(queries, keys, values, **options) - exact).abs().max()
        for form in (by_hand, attend)
    ]


@pytest.mark.parametrize("loudness", [9, 60])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_are_right_though_they_are_too_large_for_16_bits(loudness, dtype):
    numbers = loudness * torch.randn(2, 2, 200, 64)  # in float16, q·k reaches 1e5
    queries, keys = numbers.to(dtype)
    values = torch.randn(2, 200, 64, dtype=dtype)
    ours, fused = errors(queries, keys, values)
    assert ours <= 2 * fused + torch.finfo(dtype).eps  # of values near 1


@FORMS
def test_a_float32_bias_of_far_keys_keeps_its_steps(form):
    queries, keys, values = some(2, 1, 9, dtype=torch.bfloat16)
    bias = -299 - 0.25 * torch.arange(9.0)[None]  # steps of 2 in bfloat16
    exact = by_hand(*(t.double() for t in (queries, keys, values)), bias=bias.double())
    context = form(queries, keys, values, bias=bias)
    assert context.dtype == torch.bfloat16
    assert (context - exact).abs().max() < 0.03


# Models that are traced


class Padded(nn.Module):
    """Makes its mask of the lengths that it is given."""

    def forward(self, x, lengths):
        return attend(x, x, x, padding_mask(lengths, 5))


def padded_batch():
    return torch.randn(2, 1, 5, 16), torch.tensor([2, 5])


def test_a_mask_of_lengths_is_made_inside_an_exported_model(as_importer):
    given = padded_batch()
    exported = torch.export.export(Padded(), given).module()
    equal(exported(*given), Padded()(*given))


def test_a_mask_of_lengths_is_made_inside_a_compiled_model(as_importer):
    given = padded_batch()
    fast = torch.compile(Padded(), fullgraph=True, backend="eager")
    equal(fast(*given), Padded()(*given))


def test_an_entropy_is_compiled_and_mapped(as_importer):
    weights = torch.rand(3, 5, 7).softmax(dim=-1)
    fast = torch.compile(attention_entropy, fullgraph=True, backend="eager")
    equal(fast(weights), attention_entropy(weights))
    equal(torch.func.vmap(attention_entropy)(weights), attention_entropy(weights))


def test_a_mask_of_lengths_is_mapped(as_importer):
    lengths = torch.tensor([[2, 5], [0, 3]])
    masks = torch.func.vmap(lambda lengths: padding_mask(lengths, 5))(lengths)
    equal(masks, torch.stack([padding_mask(row, 5) for row in lengths]))


# Blind queries


@FORMS
@pytest.mark.parametrize("length", [33, 64, 65, 99])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_blind_query_spoils_no_other(form, length, dtype):
    real = padding_mask(torch.tensor([length, length - 5, length - 9]), length)
    tensors = [t.requires_grad_() for t in some(3, 4, length, dtype=dtype)]
    with Products():  # on other processors a kernel reads past a row's end
        context = form(*tensors, and_masks(real, real.mT))
        context.float().square().sum().backward()
    assert context.isfinite().all()
    assert all(t.grad.isfinite().all() for t in tensors)


# The weights shown


@pytest.mark.parametrize(
    "form",
    [partial(attend, scale=5.0), partial(flash_attend, scale=-1.0), rotary, linear],
    ids=["sharper", "negative", "rotary", "linear"],
)
def test_the_map_of_many_heads_is_that_of_the_form_in_use(form):
    module, x = MultiHeadAttention(4, 4, 6, 0.0, 2, attend=form), torch.randn(1, 6, 4)
    values = module.W_value(x).view(1, 6, 2, 2).transpose(1, 2)
    shown = (module.attention_weights(x) @ values).transpose(1, 2).flatten(-2)
    equal(module.out_proj(shown), module(x))


@pytest.mark.parametrize("form", [partial(attend, scale=5.0), rotary, linear])
def test_the_map_of_one_head_is_that_of_the_form_in_use(form):
    module, x = SelfAttention(4, 3, attend=form), torch.randn(2, 6, 4)
    equal(module.attention_weights(x) @ module.W_value(x), module(x))


def test_a_form_that_has_no_weights_says_so():
    def gated(queries, keys, values, mask, **options):
        return attend(queries, keys, values, mask, **options) * F.silu(values)

    module = CausalAttention(4, 3, 6, attend=gated)
    with pytest.raises(ValueError, match=said("weights")):
        module.attention_weights(torch.randn(2, 6, 4))

"""Checks

What is looked at before attention is computed, so that an input that does not fit
gets a sentence and never a wrong number.

Written by `book/tools/checks.ipynb`: read and change it there.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from inspect import signature
from math import inf, isfinite
from numbers import Integral, Real

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn import functional as F

from attention.tools.workbench import check_tensor, expected

__all__ = [
    "all_finite",
    "are_groups",
    "are_whole",
    "as_given",
    "autocast_on",
    "broadcast_heads",
    "check_above",
    "check_bias",
    "check_counts",
    "check_dropout",
    "check_fit",
    "check_form",
    "check_heads",
    "check_input",
    "check_kind",
    "check_no_dropout",
    "check_pair",
    "check_places",
    "check_positions",
    "check_returned",
    "check_scale",
    "check_sizes",
    "check_slots",
    "declare_operator",
    "dropout_now",
    "first_order",
    "has_numbers",
    "is_number",
    "is_size",
    "is_whole",
    "nan_of",
    "own_number",
    "own_numbers",
    "precise",
    "readable",
    "repeat_kv",
    "scale_queries",
    "second_derivative",
    "spread",
    "surely",
    "traced",
    "unified",
    "wants_gradient",
]


def check_kind(name: str, tensor: Tensor, queries: Tensor) -> None:
    """ValueError if `tensor` is not floats with length and width, like `queries`."""
    if tensor.ndim < 2 or not tensor.is_floating_point():
        raise expected(name, "floats (..., length, width)", tensor)
    if tensor.itemsize < 2:  # PyTorch can store them, and compute little with them
        raise expected(name, "floats of 16 bits or more", tensor)
    if (tensor.dtype, tensor.device) != (queries.dtype, queries.device):
        must = f"{queries.dtype} on {queries.device}, like the queries"
        raise expected(name, must, tensor)


def _heads(tensor: Tensor) -> int:
    return tensor.shape[-3] if tensor.ndim > 2 else 1


def are_groups(tensor: Tensor, queries: Tensor) -> bool:
    """Does each head of `tensor` serve several heads of the queries, in a row?"""
    heads, groups = _heads(queries), _heads(tensor)
    return 1 < groups < heads and heads % groups == 0


def repeat_kv(
    tensor: Float[Tensor, "*batch num_keys width"], queries: Tensor
) -> Float[Tensor, "*repeated num_keys width"]:
    """Keys or values, each head repeated in a row until there is one for each query's.

    Unchanged if there are as many heads as the queries have, or one. Ainslie et al.
    2023, section 2.2.
    """
    if not are_groups(tensor, queries):
        return tensor
    return tensor.repeat_interleave(_heads(queries) // _heads(tensor), dim=-3)


def check_fit(
    queries: Tensor, keys: Tensor, values: Tensor, *, causal: bool = False
) -> tuple[int, ...]:
    """The shape of the scores; ValueError if the three do not fit together.

    Keys and values may have fewer heads (axis -3) than the queries, by a whole factor.
    """
    three = {"queries": queries, "keys": keys, "values": values}
    check_tensor(**three)
    for name, tensor in three.items():
        check_kind(name, tensor, queries)
    (i, d), (j, e) = queries.shape[-2:], keys.shape[-2:]
    if d != e or d == 0:
        raise expected("queries and keys", "one width of at least 1", f"{d} and {e}")
    if j != values.shape[-2]:
        lengths = f"{j} and {values.shape[-2]}"
        raise expected("keys and values", "one length", lengths)
    if causal and i > j:
        must = "no more queries than keys"
        raise expected("causal=True", must, f"{i} queries and {j} keys")
    leading = [tuple(tensor.shape[:-2]) for tensor in three.values()]
    if leading[0] == leading[1] == leading[2]:  # as nearly always: nothing to stretch
        return (*leading[0], i, j)
    grouped = [
        (*axes[:-1], _heads(queries)) if are_groups(tensor, queries) else axes
        for axes, tensor in zip(leading, three.values(), strict=True)
    ]
    if grouped[0] == grouped[1] == grouped[2]:
        return (*grouped[0], i, j)
    try:
        return (*torch.broadcast_shapes(*grouped), i, j)
    except RuntimeError:
        must = "batch axes that broadcast, and heads whose number divides the queries'"
        got = ", ".join(map(str, leading))
        raise expected("queries, keys and values", must, got) from None


def broadcast_heads(
    queries: Tensor, keys: Tensor, values: Tensor, shape: tuple[int, ...]
) -> list[Tensor]:
    """The three with the batch axes of the scores, one at least, and an axis of heads.

    Keys and values keep few heads if both have equally many; both end with as many.
    """
    heads = shape[-3] if len(shape) > 2 else 1
    of_keys, of_values = _heads(keys), _heads(values)
    shared = of_values if of_keys == 1 else of_keys
    if of_values not in (1, shared):
        keys, values = (repeat_kv(tensor, queries) for tensor in (keys, values))
        shared = heads
    counts, batch = (heads, shared, shared), shape[:-3] or (1,)
    three = zip((queries, keys, values), counts, strict=True)
    return [tensor.expand(*batch, count, -1, -1) for tensor, count in three]


def spread(name: str, table: Tensor, shape: tuple[int, ...]) -> Tensor:
    """`table` with its last two axes those of `shape`; ValueError if it cannot be."""
    try:
        table.expand(shape)
    except RuntimeError:
        must = f"a shape that broadcasts to {shape}"
        raise expected(name, must, tuple(table.shape)) from None
    return table.expand(*table.shape[:-2], *shape[-2:])


def check_bias(
    bias: Tensor, shape: tuple[int, ...], queries: Tensor
) -> Float[Tensor, "..."]:
    """`bias` for scores of `shape`; ValueError if it cannot be added to them.

    Its dtype is that of the queries, or float32 with queries of 16 bits.
    """
    check_tensor(bias=bias)
    dtypes = {queries.dtype, precise(queries)}
    if bias.dtype not in dtypes or bias.device != queries.device:
        named = " or ".join(sorted(map(str, dtypes)))
        raise expected("bias", f"{named} on {queries.device}, like the queries", bias)
    return spread("bias", bias, shape)


def precise(tensor: Tensor) -> torch.dtype:
    """What scores and sums are computed in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def scale_queries(
    queries: Float[Tensor, "*batch num_queries head_dim"],
    scale: float | Tensor | None,
) -> tuple[Float[Tensor, "*batch num_queries head_dim"], float]:
    """Queries, and the number with which the scores are still to be scaled.

    None stands for 1/√head_dim. A tensor, which may be learned, is multiplied into the
    queries; of one number, only its sign, where it can be looked at (see `readable`).
    ValueError if it does not broadcast to them.
    """
    if scale is None:
        return queries, queries.shape[-1] ** -0.5
    scale = check_scale(scale, queries)
    if not isinstance(scale, Tensor):
        return queries, scale
    scale, number = scale.to(precise(queries)), 1.0
    if scale.numel() == 1 and readable(scale):
        size = abs(scale.item())
        number = size if 0 < size < inf else 1.0
    return (queries * (scale / number)).to(queries.dtype), number


def check_scale(scale: float | Tensor, queries: Tensor) -> float | Tensor:
    """The scale, a number as a float; ValueError if it is none.

    A tensor has one for all, for each head or for each query.
    """
    if not isinstance(scale, Tensor):
        own = own_number(scale)
        too_large = isinstance(own, int) and not is_number(own)
        if too_large or isinstance(own, bool) or not isinstance(own, (int, float)):
            raise expected("scale", "a number, or a tensor", repr(scale))
        return float(own)
    fits = (scale.ndim == 0 or scale.shape[-1] == 1) and not scale.is_complex()
    try:
        scale.expand(queries.shape)
    except RuntimeError:
        fits = False
    if not fits or scale.device.type not in (queries.device.type, "cpu"):
        must = f"a number, or a tensor that broadcasts to {(*queries.shape[:-1], 1)}"
        raise expected("scale", must, scale)
    return scale


def autocast_on(tensor: Tensor) -> bool:
    """Does PyTorch choose dtypes by itself where this tensor is?"""
    kind = tensor.device.type
    return kind != "meta" and torch.is_autocast_enabled(kind)


def as_given(tensor: Tensor) -> AbstractContextManager:
    """Within it, autocast leaves dtypes as they are."""
    kind = tensor.device.type
    return nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False)


def unified(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast casts the inputs of a product; unchanged if it is off.

    All floats but float64 get the dtype of autocast. What is not a tensor is left to
    `check_fit`, which says so.
    """
    if not all(isinstance(t, Tensor) for t in tensors) or not autocast_on(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(
        t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t
        for t in tensors
    )


_LARGEST = sys.float_info.max


def own_number(thing: object) -> object:
    """NumPy's numbers, and other real ones, as Python's; all else as it is."""
    if type(thing) in (int, float, bool):
        return thing
    try:
        if isinstance(thing, Integral):
            return int(thing)
        return float(thing) if isinstance(thing, Real) else thing
    except OverflowError:
        return thing


def own_numbers(thing: object) -> None:
    """The same for all fields of a dataclass, in place."""
    for each in fields(thing):
        number = own_number(getattr(thing, each.name))
        object.__setattr__(thing, each.name, number)  # it may be frozen


def is_whole(thing: object) -> bool:
    """Whether it is a whole number, Python's or NumPy's; True and False are none."""
    return isinstance(own_number(thing), int) and not isinstance(thing, bool)


def check_sizes(**sizes: int) -> list[int]:
    """The sizes, as Python's; ValueError if one is no whole number of at least 1."""
    own = _at_least(1, sizes)
    for name, size in zip(sizes, own, strict=True):
        if size >= 2**63:
            raise expected(name, "a whole number within 64 bits", size)
    return own


def check_counts(**counts: int) -> list[int]:
    """The counts, as Python's; ValueError if one is no whole number of at least 0."""
    return _at_least(0, counts)


def _at_least(least: int, numbers: dict[str, int]) -> list[int]:
    for name, number in numbers.items():
        if not is_whole(number) or number < least:
            raise expected(name, f"a whole number of at least {least}", repr(number))
    return [own_number(number) for number in numbers.values()]


def is_size(number: object) -> bool:
    """Whether an axis may have this size: a whole number of at least 0."""
    try:  # while a graph is made, a size may be another thing than an int
        whole = not isinstance(own_number(number), (float, bool))
        return whole and bool(number >= 0 and number % 1 == 0)
    except (TypeError, RuntimeError):
        return False


def is_number(thing: object) -> bool:
    """Whether it is a number that a float can hold; inf and nan are none."""
    own = own_number(thing)
    return isinstance(own, (int, float)) and abs(own) <= _LARGEST


def check_dropout(dropout: float) -> float:
    """The same, as Python's; ValueError unless it is a probability."""
    if not is_number(dropout) or dropout is True or not 0 <= dropout <= 1:
        raise expected("dropout", "a probability from 0 to 1", repr(dropout))
    return own_number(dropout)


def check_heads(d_out: int, num_heads: int) -> list[int]:
    """Both, as Python's; ValueError unless the heads can share d_out evenly."""
    d_out, num_heads = check_sizes(d_out=d_out, num_heads=num_heads)
    if d_out % num_heads != 0:
        below = d_out // num_heads * num_heads
        near = f"{below} or {below + num_heads}" if below else f"{num_heads}"
        must = f"{d_out=} must be a multiple of {num_heads=}"
        raise ValueError(f"{must}: expected {near}, got {d_out}")
    return [d_out, num_heads]


def check_input(module: nn.Module, x: Tensor) -> None:
    """ValueError if `x` does not fit the sizes, dtype or device of `module`."""
    check_tensor(x=x)
    d_in = module.d_in
    if x.ndim < 2 or x.shape[-1] != d_in or not x.is_floating_point():
        raise expected("x", f"floats (..., length, {d_in=})", x)
    context_length = getattr(module, "context_length", None)
    if context_length is not None and x.shape[-2] > context_length:
        must = f"a length of at most {context_length=}"
        raise expected("x", must, f"length {x.shape[-2]}")
    weight = getattr(module.W_query, "weight", None)
    if not isinstance(weight, Tensor):  # an adapter or a quantised layer hides it
        return
    if weight.device != x.device:
        raise expected("x", f"floats on {weight.device}, like the weights", x)
    differs = weight.is_floating_point() and weight.dtype != x.dtype
    if differs and not autocast_on(x):
        raise expected("x", f"{weight.dtype}, like the weights", x)


def dropout_now(module: nn.Module) -> float:
    """The share of weights that the module's `dropout` drops now.

    That layer's own flag decides; one without `p`, like nn.Identity, drops nothing.
    """
    dropout = module.dropout
    return getattr(dropout, "p", 0.0) if dropout.training else 0.0


def check_no_dropout(form: str, dropout_p: float) -> None:
    """ValueError if a form of this name, which has no dropout, is asked for some."""
    if dropout_p != 0:
        raise expected("dropout_p", f"0, for {form} has no dropout", dropout_p)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether gradients are recorded now, and one of these wants its own."""
    learned = (getattr(tensor, "requires_grad", False) for tensor in tensors)
    return torch.is_grad_enabled() and any(learned)


def nan_of(queries: Tensor, keys: Tensor, causal: bool = False) -> Tensor:
    """For each query 0, or nan if it or a key that it may see is nan or infinite."""
    queries, keys = queries.detach(), keys.detach()
    of_keys = (0 * keys).sum(dim=-1, keepdim=True)
    seen = of_keys.cumsum(dim=-2) if causal else of_keys.sum(dim=-2, keepdim=True)
    return (0 * queries).sum(dim=-1, keepdim=True) + seen


def readable(tensor: Tensor) -> bool:
    """Whether code may branch on the values of `tensor`: on a CPU, run at once.

    False while a graph is made of it (torch.compile, torch.export, torch.jit.trace) and
    inside vmap, where there is no value to look at, and on a GPU, since the CPU would
    have to wait for it.
    """
    return tensor.device.type == "cpu" and has_numbers(tensor)


def all_finite(*tensors: Tensor) -> bool:
    """Whether none of their numbers is nan or infinite; False if none can be seen."""
    if not _at_once(tensors[0]):
        return False
    sums = (_number(tensor.sum(dtype=precise(tensor))) for tensor in tensors)
    return all(total is not None and isfinite(total) for total in sums)


def surely(condition: Tensor) -> bool:
    """Whether this boolean is True; False where it cannot be seen."""
    return _at_once(condition) and bool(_number(condition))


def check_above(
    name: str, least: int, number: float | int | Tensor
) -> float | int | Tensor:
    """The number, as Python's; ValueError unless it is finite and above `least`.

    A tensor may hold several, which are looked at where they are `readable`.
    """
    got = number
    if not isinstance(number, Tensor):
        fits = is_number(number) and number > least
    elif number.is_complex() or readable(number):
        got = number.tolist()
        fits = not number.is_complex() and all_finite(number)
        fits = fits and bool((number > least).all())
    else:
        fits = True
    if not fits:
        raise expected(name, f"a number above {least}", got)
    return own_number(number)


def has_numbers(tensor: Tensor) -> bool:
    """Whether its numbers can be looked at, even if one has to wait for them.

    False while a graph is made of it, inside vmap, and on the meta device.
    """
    return not traced() and _number(tensor.flatten()[:1].sum()) is not None


def _at_once(tensor: Tensor) -> bool:
    """Whether it is on a CPU, and no graph is made of it."""
    return tensor.device.type == "cpu" and not traced()


def traced() -> bool:
    """Whether one of PyTorch's tracers makes a graph of the call."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return get_proxy_mode() is not None


def _number(tensor: Tensor) -> int | float | complex | None:
    """Its only number; None inside vmap, or if the tensor only stands for one."""
    try:
        value = tensor.item()
    except RuntimeError:
        return None
    return value if isinstance(value, (int, float, complex)) else None  # no symbol


def are_whole(tensor: Tensor) -> bool:
    """Whether it holds whole numbers of any kind, which booleans are not."""
    other = tensor.is_floating_point() or tensor.is_complex()
    return not other and tensor.dtype != torch.bool


def check_positions(positions: Tensor, x: Tensor) -> Tensor:
    """In 64 bits; ValueError unless these are positions of the tokens of `x`."""
    check_tensor(positions=positions)
    if not are_whole(positions) or positions.device != x.device:
        raise expected("positions", f"whole numbers on {x.device}", positions)
    (*batch, length), own = x.shape[:-1], positions.shape
    fits = own[-1:] == (length,) and len(own) <= len(batch) + 1
    rows = batch[len(batch) + 1 - len(own) :]  # those beside its axes
    if not fits or any(n not in (1, m) for n, m in zip(own[:-1], rows, strict=True)):
        must = f"shape ({length},), or {(*batch, length)}, like x"
        raise expected("positions", must, tuple(own))
    positions = positions.long()  # without a sign, a difference below 0 would wrap
    if positions.numel() and _at_once(positions):
        least = _number(positions.min())
        if least is not None and least < 0:
            raise expected("positions", "at least 0", least)
    return positions


def check_places(query_positions: Tensor, key_positions: Tensor) -> None:
    """ValueError unless all queries can be compared with all keys by position."""
    queries, keys = query_positions, key_positions
    for name, tensor in {"query_positions": queries, "key_positions": keys}.items():
        check_tensor(**{name: tensor})
        if not are_whole(tensor) or tensor.ndim < 1:
            raise expected(name, "whole numbers (..., length)", tensor)
    if queries.device != keys.device:
        must = f"whole numbers on {queries.device}, like query_positions"
        raise expected("key_positions", must, keys)
    try:
        torch.broadcast_shapes(queries.shape[:-1], keys.shape[:-1])
    except RuntimeError:
        got = f"{tuple(queries.shape)} and {tuple(keys.shape)}"
        raise expected("positions", "batch axes that broadcast", got) from None


def check_slots(masks: Sequence[Callable], **slots: Callable | None) -> None:
    """ValueError for what cannot be called."""
    for name, slot in slots.items():
        if slot is not None and not callable(slot):
            raise expected(name, "a function, or another callable", slot)
    check_form(slots["attend"], *(["bias"] if slots["bias"] is not None else ()))
    several = isinstance(masks, (tuple, list, nn.ModuleList))
    if not several or not all(map(callable, masks)):
        must = "a tuple of functions (query_positions, key_positions) -> booleans"
        raise expected("masks", must, masks)


def check_form(form: Callable, *further: str) -> None:
    """ValueError unless a module can call `form`, with these options beside its own."""
    if not callable(form):
        raise expected("attend", "a form of attention (`Attend`)", form)
    for options in (("causal", "dropout_p"), further):
        if not _takes(form, options):
            must = " and ".join(f"{name}=…" for name in options)
            name = getattr(form, "__name__", type(form).__name__)
            raise expected("attend", f"a form that takes {must}", name)


def _takes(form: Callable, options: Sequence[str]) -> bool:
    """Whether it can be called with a mask and these options, as far as it tells."""
    if (
        getattr(form, "func", form) is F.scaled_dot_product_attention
    ):  # it tells nothing
        return False
    try:
        options = dict.fromkeys(("causal", "dropout_p", *options))
        signature(form, follow_wrapped=False).bind(*[None] * 4, **options)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def check_returned(**given: object) -> None:
    """ValueError unless what a slot gave is a tensor."""
    for name, thing in given.items():
        if not isinstance(thing, Tensor):
            must = "a function that returns a torch.Tensor"
            raise expected(name, must, type(thing).__name__)


def check_pair(name: str, pair: Sequence[Tensor]) -> Sequence[Tensor]:
    """What a slot made of queries and keys; ValueError unless it is two tensors."""
    several = isinstance(pair, (tuple, list))
    if several and len(pair) == 2 and all(isinstance(each, Tensor) for each in pair):
        return pair
    kinds = ", ".join(type(each).__name__ for each in pair) if several else ""
    got = f"({kinds})" if several else type(pair).__name__
    raise expected(name, "a function that returns queries and keys", got)


def _choose_versions() -> None:
    """Call each function for the first time from one thread, for MKL's sake."""
    for name in ("exp", "log", "log2", "sin", "cos", "tanh", "sqrt"):
        for dtype in (torch.float32, torch.float64):
            getattr(torch, name)(torch.ones(1, dtype=dtype, device="cpu"))


_choose_versions()


class _Refused(torch.autograd.Function):
    """The same gradients, which cannot be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(*gradients):
        return tuple(gradient.view_as(gradient) for gradient in gradients)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise second_derivative("attend")


def second_derivative(name: str) -> RuntimeError:
    """The error for a second derivative, or one in forward mode, of a fused form."""
    instead = "attention_weights(...) @ values has one"
    what = "a first derivative, in reverse mode, alone"
    return RuntimeError(f"{name}: expected {what}, got a request for more; {instead}")


_VIEWS = ("Squeeze", "Slice", "View")  # what PyTorch may lay over a kernel's result


def first_order(context: Tensor) -> Tensor:
    """`context`, whose second derivative, if a kernel has none, is refused in words."""
    node = None if torch.compiler.is_compiling() else context.grad_fn
    while node is not None and node.name().startswith(_VIEWS):
        node = node.next_functions[0][0]
    if node is not None and "ScaledDotProduct" in node.name():
        node.register_hook(_mark)
    return context


def _mark(gradients, _):
    """Mark the gradients of a fused call, if they may be differentiated again."""
    if not torch.is_grad_enabled():
        return None
    marked = iter(_Refused.apply(*(g for g in gradients if g is not None)))
    return tuple(g if g is None else next(marked) for g in gradients)


_GIVEN = "Tensor queries, Tensor keys, Tensor values, Tensor? bias, Tensor? mask"
_FOUND = "Tensor do, Tensor dlse, Tensor context, Tensor lse"


def declare_operator(form: type, fields: str) -> None:
    """Make torch.ops.attention.NAME of a form, which a graph calls unseen.

    `fields` are those of the form, with their types in an operator's schema.
    """
    name, given = f"attention::{form.name}", f"{_GIVEN}, {fields}"

    def of(fields):
        return form(*(tuple(f) if isinstance(f, list) else f for f in fields))

    def forward(*inputs):
        return of(inputs[5:]).forward(*inputs[:5])

    def backward(*inputs):
        needed = [True, True, True, inputs[9]]
        return of(inputs[10:]).backward(*inputs[:9], needed=needed)

    first, second = (
        torch.library.custom_op(f"{name}{which}", f, mutates_args=(), schema=schema)
        for which, f, schema in (
            ("", forward, f"({given}) -> (Tensor, Tensor)"),
            (
                "_backward",
                backward,
                f"({_FOUND}, {_GIVEN}, bool learns, {fields}) -> Tensor[]",
            ),
        )
    )

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*output, *inputs[:5])
        ctx.fields = inputs[5:]

    def gradients(ctx, do, dlse):
        learns = ctx.needs_input_grad[3]
        found = second(do, dlse, *ctx.saved_tensors, learns, *ctx.fields)
        return *found, *[None] * (5 + len(ctx.fields) - len(found))

    def shapes(*inputs):
        some = inputs[4 : 8 if inputs[9] else 7]
        return [tensor.new_empty(tensor.shape) for tensor in some]

    first.register_fake(lambda *inputs: of(inputs[5:]).nothing(*inputs[:3]))
    second.register_fake(shapes)
    first.register_autograd(gradients, setup_context=keep)

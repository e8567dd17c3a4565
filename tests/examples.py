"""Small inputs that several tests draw, with a prime size on every axis."""

import re
from functools import cache, partial

import torch
from hypothesis import strategies as st


@cache
def real_model():
    """The language model, loaded once for all tests of a process that ask for it."""
    from attention import load_language_model

    return load_language_model()


def said(*fields: object) -> str:
    """What a message must hold, in this order, whatever words stand between.

    For `pytest.raises(…, match=said("mask", "got", "float32"))`: a test names the
    fields of a message, so that it lives on when the sentence is said better.
    """
    return "(?s)" + ".*".join(re.escape(str(field)) for field in fields)


def _compiled(module, *inputs):
    torch.compiler.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")


def _exported(module, *inputs, strict):
    return torch.export.export(module, inputs, strict=strict).module()


TRACERS = {  # each makes of a module, and of inputs to trace it with, what is called
    "compile": _compiled,
    "export": partial(_exported, strict=False),
    "strict export": partial(_exported, strict=True),
}


LETTERS = st.characters(exclude_categories=()) | st.sampled_from(
    "\n\t\r \u00a0\u200b\u2028␣↵⇥∅◌⟨⟩aeé\u0301\u0323\u1100\u1161\u11a8가אع(1)"
)
TOKENS = st.text(LETTERS, max_size=5)  # of every kind


def token_of(shown: str) -> str:
    """The token that `visible_token` shows so; each has a look of its own."""
    numbers = re.compile("⟨U\\+([0-9A-F]+)⟩|([↵⇥␣])|^∅$|^◌")
    signs = {"↵": "\n", "⇥": "\t", "␣": " ", None: ""}
    return numbers.sub(lambda n: chr(int(n[1], 16)) if n[1] else signs[n[2]], shown)


def some_tensors(dtype=torch.float32, batch=(2, 3)):
    """Queries, keys and values: 5 and 7 tokens of width 11, values of width 13."""
    queries = torch.randn(*batch, 5, 11, dtype=dtype)
    keys = torch.randn(*batch, 7, 11, dtype=dtype)
    values = torch.randn(*batch, 7, 13, dtype=dtype)
    return queries, keys, values


def some_mask(*shape, blind=None):
    """A random mask in which every query but the blind one sees its first key."""
    mask = torch.rand(*shape) < 0.5
    mask[..., 0] = True
    if blind is not None:
        mask[..., blind, :] = False
    return mask


def assert_twins(module, twin, *inputs):
    """Same weights, same numbers: the outputs of both and all their gradients."""
    twin.load_state_dict(module.state_dict())
    torch.testing.assert_close(twin(*inputs), module(*inputs))
    for one in (module, twin):
        one(*inputs).pow(2).sum().backward()
    for one, other in zip(twin.parameters(), module.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def change(**changes):
    """The arguments of a call that fits, but for these changes."""
    queries, keys, values = some_tensors()
    return {"queries": queries, "keys": keys, "values": values} | changes


MISFITS = {  # what every form of attention must refuse, and in which words
    "widths differ": (
        change(keys=torch.randn(2, 3, 7, 2)),
        said("queries and keys", "one width", "got 11 and 2"),
    ),
    "no width": (
        change(queries=torch.randn(2, 3, 5, 0), keys=torch.randn(2, 3, 7, 0)),
        said("queries and keys", "one width", "got 0 and 0"),
    ),
    "lengths differ": (
        change(values=torch.randn(2, 3, 2, 13)),
        said("keys and values", "one length", "got 7 and 2"),
    ),
    "lengths differ without a batch": (
        {
            "queries": torch.randn(5, 11),
            "keys": torch.randn(7, 11),
            "values": torch.randn(2, 13),
        },
        said("keys and values", "one length", "got 7 and 2"),
    ),
    "batches differ": (
        change(queries=torch.randn(5, 3, 5, 11)),
        said("queries, keys and values", "broadcast", "got (5, 3), (2, 3), (2, 3)"),
    ),
    "dtypes differ": (
        change(keys=torch.randn(2, 3, 7, 11, dtype=torch.float64)),
        said("keys", "float32 on cpu", "got torch.float64"),
    ),
    "devices differ": (
        change(values=torch.randn(2, 3, 7, 13, device="meta")),
        said("values", "float32 on cpu", "got", "(2, 3, 7, 13) on meta"),
    ),
    "whole numbers": (
        change(queries=torch.ones(2, 3, 5, 11, dtype=torch.int64)),
        said("queries", "floats (..., length, width)", "got torch.int64"),
    ),
    "one axis": (
        change(values=torch.randn(7)),
        said("values", "floats", "got torch.float32 (7,)"),
    ),
    "mask of numbers": (
        change(mask=torch.ones(5, 7)),
        said("mask", "booleans", "cpu", "got torch.float32 (5, 7)"),
    ),
    "mask on another device": (
        change(mask=torch.ones(5, 7, dtype=torch.bool, device="meta")),
        said("mask", "on cpu", "got torch.bool", "on meta"),
    ),
    "mask the wrong way round": (
        change(mask=torch.ones(7, 5, dtype=torch.bool)),
        said("mask", "broadcasts to (2, 3, 5, 7)", "got (7, 5)"),
    ),
    "mask with too many axes": (
        change(mask=torch.ones(2, 2, 3, 5, 7, dtype=torch.bool)),
        said("mask", "broadcasts to (2, 3, 5, 7)"),
    ),
    "bias the wrong way round": (
        change(bias=torch.randn(7, 5)),
        said("bias", "broadcasts to (2, 3, 5, 7)", "got (7, 5)"),
    ),
    "bias of another dtype": (
        change(bias=torch.randn(5, 7, dtype=torch.float64)),
        said("bias", "float32 on cpu", "got torch.float64"),
    ),
    "more queries than keys": (
        change(queries=torch.randn(2, 3, 11, 11), causal=True),
        said("causal=True", "no more queries than keys", "got 11", "7"),
    ),
}


class Growing:
    """The smallest cache."""

    length = 0

    def extend(self, *new):
        if self.length:
            pairs = zip(self.held, new, (-2, -2, -1), strict=True)
            new = [torch.cat([old, more], dim) for old, more, dim in pairs]
        self.held, self.length = new, new[-1].shape[-1]
        return tuple(new)


def in_pieces(layer, x, ends):
    """What a layer gives for a text that comes in pieces, which a cache joins."""
    cache, pieces = Growing(), torch.tensor_split(x, ends, dim=1)
    return torch.cat([layer(piece, cache=cache) for piece in pieces], dim=1)

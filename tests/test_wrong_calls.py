"""Each call of `wrong_calls.txt` is refused in the words below it, by no other error.

q, k and v are queries, keys and values of 5, 7 and 7 tokens in 2 sentences and 3 heads;
x is 2 sentences of 5 tokens, 3 wide; `state` is a checkpoint of MultiHeadAttention.
"""

import math
import re
from pathlib import Path

import pytest
import torch

import attention
from conformance.names import public

PUBLIC = public()  # once: it goes through all modules
TEXT = (Path(__file__).parent / "wrong_calls.txt").read_text("utf-8")
CALLS = re.findall(r"^>>> (.*)\n(.*)$", TEXT, flags=re.MULTILINE)


@pytest.fixture
def names(as_importer):
    """What the calls speak of."""
    random = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=random)

    def mask(*shape):
        return torch.ones(shape, dtype=torch.bool)

    queries, keys = draw(2, 3, 5, 11), draw(2, 3, 7, 11)
    tensors = {"q": queries, "k": keys, "v": draw(2, 3, 7, 13), "x": draw(2, 5, 3)}
    state = attention.MultiHeadAttention(3, 4, 5, 0.0, 2).state_dict()
    shared = attention.AttentionOnly(7, 4, num_layers=2, num_heads=2)
    shared.blocks[1].attention = shared.blocks[0].attention
    tools = {"mask": mask, "state": state, "torch": torch, "shared": shared}
    return PUBLIC | tensors | tools | {"nan": math.nan, "inf": math.inf}


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[call for call, _ in CALLS])
def test_a_wrong_call_is_refused_and_told_what_must_hold_and_what_came(
    names, call, message
):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        eval(call, names)


def test_the_calls_are_many_and_each_is_another():
    assert len({call for call, _ in CALLS}) == len(CALLS) >= 60


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("form", ["attend", "flash_attend"])
@pytest.mark.parametrize(
    "rest", ["q, k, v", "k, k, k", "k, k, k, causal=True", "k[..., :1, :], k, k"]
)
def test_a_scale_that_is_no_number_gives_none_in_any_form(names, form, rest, scale):
    assert not eval(f"{form}({rest}, scale={scale})", names).isfinite().any()


@pytest.mark.parametrize("scale", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("call", ["attention_weights(q, k"])
def test_a_scale_that_is_no_number_gives_none(names, call, scale):
    assert not eval(f"{call}, scale={scale})", names).isfinite().any()

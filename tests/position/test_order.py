"""What attention knows of order when nobody tells it."""

import pytest
import torch
from torch import nn

from attention import Attention, StackedHeads, attend, attention_weights

equal = torch.testing.assert_close


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("heads", [1, 2, 5])
def test_without_a_mask_shuffled_tokens_get_what_they_got(layers, heads):
    options = {"masks": (), "num_kv_heads": 1}
    stack = [Attention(10, 10, heads, **options) for _ in range(layers)]
    model, x = nn.Sequential(*stack), torch.randn(2, 7, 10)
    order = torch.randperm(7)
    equal(model(x[:, order]), model(x)[:, order])


@pytest.mark.parametrize("kind", [Attention, StackedHeads])
def test_a_causal_layer_is_not_so_blind(kind):
    slots = (10, 10, 1) if kind is Attention else (10, 10, 7, 0.0, 1)
    layer, x = kind(*slots), torch.randn(2, 7, 10)
    order = torch.tensor([1, 0, 2, 3, 4, 5, 6])
    moved, still = layer(x[:, order]), layer(x)[:, order]
    assert not torch.allclose(moved[:, :2], still[:, :2])
    equal(moved[:, 2:], still[:, 2:])


def test_one_causal_layer_sees_a_bag_of_the_past():
    """Without positions row 3 is the same for any order of the past; row 2 is not."""
    torch.manual_seed(0)
    x = torch.randn(4, 3)
    rows = [
        attention_weights(text, text, causal=True) @ text
        for text in (x, x[[2, 0, 1, 3]])
    ]
    given = torch.stack([rows[0][3], rows[1][3], rows[0][2], rows[1][2]])
    must = [
        [0.3419, -0.4468, -0.8278],
        [0.3419, -0.4468, -0.8278],
        [0.9714, -0.0537, -1.535],
        [1.1176, -0.5145, -1.8064],
    ]
    equal(given, torch.tensor(must), rtol=0, atol=5e-5)  # printed to four digits
    twice = [attend(row, row, row, causal=True)[3] for row in rows]
    assert not torch.allclose(*twice, atol=0.01)


@pytest.mark.parametrize("length", [1, 5, 100])
def test_the_share_of_the_first_token_counts(length):
    alike, first = torch.zeros(length, 1), torch.eye(length)[:, :1]
    shares = attend(alike, alike, first, causal=True)
    places = (1 / shares - 1).flatten()
    equal(places, torch.arange(length).float(), rtol=1e-4, atol=1e-4)  # two divisions

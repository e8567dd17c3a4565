"""Masks: what they hide, how they go together, and what is no mask."""

import pytest
import torch

from attention import (
    MultiHeadAttention,
    and_masks,
    attention_weights,
    causal_mask,
    document_mask,
    future_leak,
    padding_mask,
)


def some_module():
    return MultiHeadAttention(3, 10, 11, 0.0, 5)


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_hidden_and_real_tokens_are_not(left):
    mask = padding_mask(torch.tensor([0, 2, 5]), 5, left=left)
    assert mask.shape == (3, 1, 1, 5)
    rows = [[0] * 5, [0, 0, 0, 1, 1] if left else [1, 1, 0, 0, 0], [1] * 5]
    assert mask[:, 0, 0].int().tolist() == rows


@pytest.mark.parametrize("left", [False, True])
def test_a_padded_sentence_gets_what_it_gets_alone(left):
    module, x = some_module(), torch.randn(2, 7, 3)
    lengths = torch.tensor([2, 7])
    context = module(x, padding_mask(lengths, 7, left=left))
    place = slice(5, 7) if left else slice(0, 2)
    torch.testing.assert_close(context[0, place], module(x[0, place]))
    torch.testing.assert_close(context[1], module(x[1]))


def test_a_sentence_of_padding_alone_gets_the_bias_of_the_projection():
    module, x = some_module(), torch.randn(1, 7, 3)
    context = module(x, padding_mask(torch.tensor([0]), 7))
    torch.testing.assert_close(context[0], module.out_proj.bias.expand(7, 10))


def test_documents_see_only_themselves():
    mask = document_mask(torch.tensor([[3, 3, 8, 3]]))
    expected = [[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 0, 1]]
    assert mask.shape == (1, 1, 4, 4)
    assert mask[0, 0].int().tolist() == expected


def test_packed_documents_get_what_they_get_alone():
    module, x = some_module(), torch.randn(2, 7, 3)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [5, 5, 5, 5, 5, 2, 2]])
    context = module(x, document_mask(documents))
    torch.testing.assert_close(context[0, :2], module(x[0, :2]))
    torch.testing.assert_close(context[0, 2:], module(x[0, 2:]))
    torch.testing.assert_close(context[1, :5], module(x[1, :5]))
    torch.testing.assert_close(context[1, 5:], module(x[1, 5:]))


def test_masks_together_allow_what_all_of_them_allow():
    padding = padding_mask(torch.tensor([2, 5]), 5)
    documents = document_mask(torch.randint(2, (2, 5)))
    together = and_masks(padding, causal_mask(5), documents)
    assert together.shape == (2, 1, 5, 5)
    assert torch.equal(together, padding & causal_mask(5) & documents)


def test_the_order_of_masks_does_not_matter():
    one, two = torch.rand(3, 1, 5) < 0.5, torch.rand(7, 5) < 0.5
    assert torch.equal(and_masks(one, two), and_masks(two, one))


def test_none_hides_nothing():
    mask = causal_mask(5)
    assert torch.equal(and_masks(None, mask, None), mask)
    assert and_masks(None) is None
    assert and_masks() is None


def test_a_combined_mask_does_not_leak():
    module, x = some_module(), torch.randn(2, 7, 3)
    documents = document_mask(torch.randint(2, (2, 7)))
    mask = and_masks(documents, padding_mask(torch.tensor([5, 7]), 7))
    assert future_leak(lambda x: module(x, mask), x) == 0


def test_masks_do_not_change_what_they_are_made_of():
    mask = causal_mask(5)
    before = mask.clone()
    and_masks(mask, torch.zeros(5, 5, dtype=torch.bool))
    assert torch.equal(mask, before)


def test_masks_are_made_where_their_inputs_are():
    lengths = torch.ones(2, 3, dtype=torch.int64, device="meta")
    assert document_mask(lengths).device.type == "meta"


def test_masks_fit_single_heads_without_the_head_axis():
    queries, keys = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    mask = padding_mask(torch.tensor([2, 5]), 5)[:, 0]
    weights = attention_weights(queries, keys, mask)
    assert (weights[0, :, 2:] == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: padding_mask(torch.tensor([2, 6]), 5), r"max_length=5.*came=\[2, 6\]"),
        (lambda: padding_mask(torch.tensor([-1]), 5), r"from 0 to .*came=\[-1\]"),
        (lambda: padding_mask(torch.tensor([2.0]), 5), "whole numbers.*torch.float32"),
        (lambda: padding_mask(torch.tensor([[2]]), 5), r"one a sentence.*\(1, 1\)"),
        (lambda: padding_mask(torch.tensor([True]), 5), "whole numbers.*torch.bool"),
        (lambda: document_mask(torch.tensor([1, 2])), r"\(batch, length\).*\(2,\)"),
        (lambda: document_mask(torch.ones(2, 3)), "documents must.*torch.float32"),
        (
            lambda: and_masks(torch.ones(3)),
            r"boolean \(True may see\), came torch.float32",
        ),
        (lambda: and_masks(causal_mask(3), torch.ones(3, 3)), "came torch.float32"),
        (lambda: and_masks(causal_mask(3), causal_mask(5)), r"\(3, 3\) and \(5, 5\)"),
    ],
)
def test_what_is_no_mask_is_refused(as_importer, make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sentences_of_no_token_need_no_place(as_importer):
    assert padding_mask(torch.tensor([0, 0]), 0).shape == (2, 1, 1, 0)

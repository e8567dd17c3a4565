"""Masks: what they hide, how they go together, and what is no mask."""

import pytest
import torch
from examples import TRACERS, said
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from attention import (
    MultiHeadAttention,
    and_masks,
    attend,
    attention_weights,
    causal_mask,
    document_mask,
    future_leak,
    padding_mask,
)
from attention.tools.checks import readable, surely


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
    ("make", "fields"),
    [
        (lambda: padding_mask(torch.tensor([2, 6]), 5), ("lengths", 5, "[2, 6]")),
        (lambda: padding_mask(torch.tensor([-1]), 5), ("lengths", "from 0", "[-1]")),
        (lambda: padding_mask(torch.tensor([2.0]), 5), ("lengths", "whole", "float32")),
        (
            lambda: padding_mask(torch.tensor([2j]), 5),
            ("lengths", "whole", "complex64"),
        ),
        (
            lambda: padding_mask(torch.tensor([[2]]), 5),
            ("lengths", "one per sentence", "(1, 1)"),
        ),
        (lambda: padding_mask(torch.tensor([True]), 5), ("lengths", "whole", "bool")),
        (lambda: padding_mask(torch.tensor([2]), "5"), ("max_length", "whole", "'5'")),
        (
            lambda: padding_mask(torch.tensor([2]), None),
            ("max_length", "whole", "None"),
        ),
        (lambda: padding_mask(torch.tensor([2]), 5.5), ("max_length", "whole", "5.5")),
        (lambda: document_mask(torch.tensor([1, 2])), ("documents", "length", "(2,)")),
        (lambda: document_mask(torch.ones(2, 3)), ("documents", "whole", "float32")),
        (lambda: and_masks(torch.ones(3)), ("masks", "booleans", "float32")),
        (lambda: and_masks(causal_mask(3), torch.ones(3, 3)), ("masks", "float32")),
        (
            lambda: and_masks(causal_mask(3), causal_mask(5)),
            ("masks", "(3, 3)", "(5, 5)"),
        ),
        (
            lambda: and_masks(causal_mask(3), causal_mask(3, device="meta")),
            ("masks", "one device", "cpu and meta"),
        ),
    ],
)
def test_what_is_no_mask_is_refused(as_importer, make, fields):
    with pytest.raises(ValueError, match=said(*fields)):
        make()


@pytest.mark.parametrize(
    "make", [lambda x: padding_mask(x, 5), document_mask, and_masks]
)
def test_what_is_no_tensor_is_refused(as_importer, make):
    with pytest.raises(TypeError, match=said("torch.Tensor", "got list")):
        make([True, False])


def test_sentences_of_no_token_need_no_place(as_importer):
    assert padding_mask(torch.tensor([0, 0]), 0).shape == (2, 1, 1, 0)


# While a graph is made, inside vmap and on a GPU, no value is looked at


class Masked(nn.Module):
    """A model that makes its masks itself, of all kinds."""

    def forward(self, x, lengths, documents):
        length = x.shape[-2]
        padding = padding_mask(lengths, length, left=True)
        mask = and_masks(padding, causal_mask(length), document_mask(documents), None)
        return attend(x, x, x, mask)


@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_a_model_that_makes_its_masks_can_be_traced_whole(as_importer, traced):
    x, lengths = torch.randn(2, 1, 5, 16), torch.tensor([2, 5])
    documents = torch.randint(2, (2, 5))
    model = traced(Masked(), x, lengths, documents)
    for one in (lengths, torch.tensor([3, 0])):
        expected = Masked()(x, one, documents)
        torch.testing.assert_close(model(x, one, documents), expected)


class Padding(nn.Module):
    def forward(self, lengths, documents):
        length = documents.shape[1]
        return and_masks(padding_mask(lengths, length), document_mask(documents))


@pytest.mark.parametrize("strict", [True, False])
def test_exported_masks_serve_all_batches_and_lengths(as_importer, strict):
    batch, length = (torch.export.Dim(name, min=2) for name in ("batch", "length"))
    inputs = torch.tensor([2, 5, 3]), torch.randint(2, (3, 5))
    sizes = {0: batch}, {0: batch, 1: length}
    exported = torch.export.export(
        Padding(), inputs, dynamic_shapes=sizes, strict=strict
    )
    other = torch.tensor([2, 7]), torch.randint(2, (2, 7))
    assert torch.equal(exported.module()(*other), Padding()(*other))


def test_vmap_makes_one_mask_after_the_other(as_importer):
    lengths, documents = torch.tensor([[2, 5], [0, 3]]), torch.randint(2, (3, 2, 5))
    masks = torch.vmap(lambda lengths: padding_mask(lengths, 5))(lengths)
    assert torch.equal(masks, torch.stack([padding_mask(row, 5) for row in lengths]))
    mine = torch.vmap(document_mask)(documents)
    assert torch.equal(mine, torch.stack([document_mask(rows) for rows in documents]))
    both = torch.vmap(lambda mask: and_masks(mask, causal_mask(5)))(mine)
    assert torch.equal(both, mine & causal_mask(5))


def test_lengths_that_are_not_looked_at_count_as_none_and_all(as_importer):
    lengths = torch.tensor([[-3, 9]])
    (mask,) = torch.vmap(lambda lengths: padding_mask(lengths, 5))(lengths)
    assert torch.equal(mask, padding_mask(torch.tensor([0, 5]), 5))


def test_values_can_be_looked_at_on_a_cpu():
    for tensor in (torch.randn(3, 5), torch.tensor(7), torch.ones(0), torch.eye(3) < 1):
        assert readable(tensor)
    assert torch.func.grad(lambda x: x * readable(x))(torch.ones(())) == 1


def test_values_cannot_be_looked_at_while_a_graph_is_made(as_importer):
    seen = []

    def look(x):
        seen.append(readable(x))
        return x + 1

    x = torch.arange(6)
    torch.vmap(look)(x)
    torch.vmap(torch.vmap(look))(x[None])
    look(x.to("meta"))
    with FakeTensorMode():
        look(torch.arange(6))
    for mode in ("real", "fake", "symbolic"):
        make_fx(look, tracing_mode=mode)(x)
    assert seen == [False] * 7


def test_what_cannot_be_looked_at_is_not_surely_true(as_importer):
    assert surely(torch.tensor(True))
    assert not surely(torch.tensor(False))
    seen = []
    torch.vmap(lambda x: seen.append(surely(x < 9)) or x)(torch.arange(6))
    make_fx(lambda x: seen.append(surely(x.sum() < 99)) or x)(torch.arange(6))
    assert seen == [False] * 2
    assert not surely(torch.ones((), dtype=torch.bool, device="meta"))


class Looks(nn.Module):
    """Its result tells whether values can be looked at."""

    def forward(self, x):
        return x + 1 if readable(x) else x


@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_values_cannot_be_looked_at_while_it_is_traced(as_importer, traced):
    x = torch.randn(3)
    assert torch.equal(traced(Looks(), x)(x), x)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_masks_are_made_without_waiting_for_it():
    lengths = torch.tensor([2, 9]).cuda()
    assert not readable(lengths)
    torch.cuda.set_sync_debug_mode("error")
    try:
        padding_mask(lengths, 5)
        document_mask(lengths[None])
    finally:
        torch.cuda.set_sync_debug_mode("default")

"""Kinds of heads, and models without some: a small one always, the real one if here."""

import numpy as np
import pytest
import torch
from examples import real_model, said
from torch import nn
from torch.nn import functional as F

from attention import (
    Attention,
    KVCache,
    LanguageModel,
    MultiHeadAttention,
    ablate,
    generate,
    head_scores,
)
from attention.reading.heads import where_heads_look
from conformance.handed import quantized

IDS = torch.tensor(
    [[5, 2, 7, 1, 5, 2, 3, 7, 1, 6, 6], [4, 4, 8, 4, 8, 9, 0, 1, 2, 4, 8]]
)


@pytest.fixture
def small():
    return LanguageModel(11, 30, 17, 3, 5).eval().requires_grad_(False)


class Fixed(Attention):
    """Weights that a test has chosen, all heads' or one for each."""

    def __init__(self, weights):
        super().__init__(6, 6, len(weights))
        self.weights = weights

    def attention_weights(self, x, *others, **options):
        return self.weights.expand(*x.shape[:-2], *self.weights.shape)


class Around(nn.Module):
    """The least that a model must have: blocks with an attention in each."""

    def __init__(self, *attentions, d=6):
        super().__init__()
        self.embedding = nn.Embedding(11, d)
        self.blocks = nn.ModuleList(nn.Module() for _ in attentions)
        for block, attention in zip(self.blocks, attentions, strict=True):
            block.attention = attention

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = x + block.attention(x)
        return x


def one_hot(keys):
    return F.one_hot(torch.tensor(keys), len(keys)).float()


# Where heads look


@pytest.mark.parametrize("ids", [IDS, IDS[0].float(), IDS[0] > 0, IDS[0, 0]])
def test_what_is_not_one_text_is_refused(ids, as_importer):
    with pytest.raises(ValueError, match=said("ids", "one text", "got", ids.dtype)):
        where_heads_look(ids)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_any_whole_number_may_stand_for_a_token(dtype):
    ids = torch.tensor([0, 1, 0, 1, 2, 0])
    must = where_heads_look(ids).induction
    for other in (ids, ids + 100, 2 - ids if dtype is torch.uint8 else -1 - ids):
        assert torch.equal(where_heads_look(other.to(dtype)).induction, must)


def test_each_kind_looks_where_a_loop_over_the_tokens_says():
    ids = IDS[1].tolist()
    kinds = where_heads_look(IDS[1], skip=3)
    for i in range(len(ids)):
        after = [j for j in range(1, i + 1) if ids[j - 1] == ids[i]]
        assert kinds.induction[i].nonzero().flatten().tolist() == after
        assert kinds.previous[i].nonzero().flatten().tolist() == [*range(i)][-1:]
        assert kinds.sink[i].nonzero().flatten().tolist() == [0] * (i >= 3)


def test_no_kind_looks_at_what_is_to_come():
    for kind in where_heads_look(IDS[0]):
        assert not kind.triu(1).any()


def test_the_last_token_of_a_text_is_not_the_one_before_its_first():
    ids = torch.tensor([3, 1, 2, 3])
    assert not where_heads_look(ids).induction[:, 0].any()


# Scores


def test_a_perfect_head_of_each_kind_scores_one_and_nothing_else():
    previous = one_hot([0, *range(10)])
    sink = one_hot([0] * 11)
    induction = one_hot([0, 0, 0, 0, 1, 2, 0, 3, 4, 0, 10])
    model = Around(Fixed(torch.stack([previous, sink, induction])))
    scores = head_scores(model, IDS[0])
    assert scores.previous[0].tolist() == pytest.approx([1, 0.1, 0.1])
    assert scores.sink[0].tolist() == pytest.approx([0, 1, 2 / 7])
    assert scores.induction[0].tolist() == pytest.approx([0, 0, 1])


def test_weight_on_several_earlier_occurrences_is_added_up():
    ids = torch.tensor([4, 4, 8, 4, 8, 9])
    even = torch.ones(6, 6).tril() / torch.arange(1, 7)[:, None]
    scores = head_scores(Around(Fixed(even[None])), ids)
    assert scores.induction.item() == pytest.approx((1 / 2 + 2 / 4 + 1 / 5) / 3)


def test_scores_of_several_texts_are_averaged(small):
    both = head_scores(small, IDS)
    alone = [head_scores(small, ids) for ids in IDS]
    for kind, *each in zip(both, *alone, strict=True):
        assert kind.shape == (3, 5)
        torch.testing.assert_close(kind, sum(each) / 2)


def test_scores_are_those_of_the_weights_that_the_model_gives(small):
    weights = torch.stack(small.attention_weights(IDS[0]))
    scores = head_scores(small, IDS[0], skip=2)
    torch.testing.assert_close(scores.sink, weights[:, :, 2:, 0].mean(dim=-1))
    line = weights.diagonal(-1, dim1=-2, dim2=-1).mean(dim=-1)
    torch.testing.assert_close(scores.previous, line)


def test_a_text_without_repetition_says_nothing_of_induction(small):
    new = torch.arange(11)
    scores = head_scores(small, new)
    assert scores.induction.isnan().all()
    assert not scores.previous.isnan().any()
    both = head_scores(small, torch.stack([new, IDS[0]])).induction
    torch.testing.assert_close(both, head_scores(small, IDS[0]).induction)


def test_other_layers_of_the_book_have_scores_and_can_be_ablated():
    """As in the small GPT: blocks with an attention in them, and nothing more."""
    layers = [MultiHeadAttention(6, 6, 11, 0.0, 3) for _ in range(2)]
    model = Around(*layers).requires_grad_(False)
    assert head_scores(model, IDS).previous.shape == (2, 3)
    before = model(IDS)
    with ablate(model, [(1, 2)]):
        assert not torch.allclose(model(IDS), before)


def test_to_look_leaves_no_hook_and_no_graph(small):
    small.requires_grad_(True)
    assert not head_scores(small, IDS).sink.requires_grad
    assert hooks_of(small) == 0


# Removal


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def without_by_hand(model, *heads):
    """A twin whose out_proj does not read these heads."""
    twin = LanguageModel(11, 30, 17, 3, 5).eval().requires_grad_(False)
    twin.load_state_dict(model.state_dict())
    for layer, head in heads:
        twin.blocks[layer].attention.out_proj.weight[:, head * 6 : head * 6 + 6] = 0
    return twin


def test_a_head_set_to_zero_is_a_head_that_nobody_reads(small):
    heads = [(0, 4), (2, 0), (2, 3)]
    with ablate(small, heads):
        removed = small(IDS)
    torch.testing.assert_close(removed, without_by_hand(small, *heads)(IDS))


class Adapted(nn.Module):
    """A linear layer with a small one beside it, as adapters are."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.rank = linear, nn.Linear(30, 30, bias=False)

    def forward(self, x):
        return self.linear(x) + self.rank(x)


def adapted(model):
    for block in model.blocks:
        block.attention.out_proj = Adapted(block.attention.out_proj)
    return model


@pytest.mark.parametrize("replace", [adapted, quantized])
@pytest.mark.parametrize("options", [{}, {"by": "mean", "ids": IDS}])
def test_a_head_can_be_removed_before_an_adapter_or_a_quantised_layer(
    small, replace, options
):
    small, entered = replace(small), []
    last = small.blocks[2].attention.out_proj
    last.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    with ablate(small, [(2, 1), (2, 4)], **options):
        last.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
        small(IDS)
    before, after = (each.unflatten(-1, (5, 6)) for each in entered[-2:])
    instead = before.mean(dim=(0, 1)) if options else torch.zeros(5, 6)
    for head in range(5):
        must = (
            instead[head].expand(2, 11, 6) if head in (1, 4) else before[..., head, :]
        )
        torch.testing.assert_close(after[..., head, :], must)


def test_afterwards_the_model_is_as_before(small):
    before, state = small(IDS), {n: t.clone() for n, t in small.state_dict().items()}
    with ablate(small, [(1, 1)]):
        assert not torch.allclose(small(IDS), before)
    assert torch.equal(small(IDS), before)
    assert hooks_of(small) == 0
    assert all(torch.equal(state[name], t) for name, t in small.state_dict().items())


def test_an_error_takes_the_hooks_away_too(small):
    before = small(IDS)
    with pytest.raises(KeyError), ablate(small, [(1, 1)]):
        raise KeyError
    assert torch.equal(small(IDS), before)
    assert hooks_of(small) == 0


@pytest.mark.parametrize("outer", [[(0, 4)], [(2, 3), (0, 4)]])
def test_blocks_within_blocks_add_up(small, outer):
    with ablate(small, outer):
        outside = small(IDS)
        with ablate(small, [(2, 3)]):
            both = small(IDS)
        assert torch.equal(small(IDS), outside)
    torch.testing.assert_close(both, without_by_hand(small, (0, 4), (2, 3))(IDS))


def test_to_remove_nothing_changes_nothing(small):
    with ablate(small, []):
        inside = small(IDS)
    assert torch.equal(inside, small(IDS))


def test_a_mean_is_taken_over_the_tokens_of_the_given_text(small):
    layer, columns, seen = small.blocks[1].attention, slice(12, 18), []
    hook = layer.out_proj.register_forward_pre_hook(lambda _, z: seen.append(z[0]))
    small(IDS)
    hook.remove()
    mean = seen[0][..., columns].flatten(0, 1).mean(dim=0)
    twin = without_by_hand(small, (1, 2))
    twin.blocks[1].attention.out_proj.bias = nn.Parameter(
        layer.out_proj.weight[:, columns] @ mean, requires_grad=False
    )
    with ablate(small, [(1, 2)], by="mean", ids=IDS):
        removed = small(IDS[:1, :5])
    torch.testing.assert_close(removed, twin(IDS[:1, :5]))


def test_a_head_that_says_the_same_of_every_token_can_have_its_mean(small):
    small.blocks[1].attention.W_value.weight[6:12] = 0
    before = small(IDS)
    with ablate(small, [(1, 1)], by="mean", ids=IDS):
        torch.testing.assert_close(small(IDS), before)


def test_generation_with_a_cache_is_generation_without_among_removed_heads(small):
    for options in ({}, {"by": "mean", "ids": IDS}):
        with ablate(small, [(0, 1), (2, 2)], **options):
            plain = [*generate(small, [3, 5], num_tokens=7)]
            cached = [*generate(small, [3, 5], num_tokens=7, make_cache=KVCache)]
        assert plain == cached


def test_scores_within_a_block_are_those_of_what_is_left(small):
    with ablate(small, [(0, 2)]):
        left = head_scores(small, IDS)
    torch.testing.assert_close(left, head_scores(without_by_hand(small, (0, 2)), IDS))


def test_what_is_left_can_be_trained(small):
    small.requires_grad_(True)
    with ablate(small, [(1, 2)]):
        small(IDS).square().mean().backward()
    grad = small.blocks[1].attention.out_proj.weight.grad
    assert (grad[:, 12:18] == 0).all()
    assert (grad[:, :12] != 0).any()


# What is refused


@pytest.mark.parametrize(
    ("heads", "got"),
    [
        ([(3, 0)], "from 0 to 2, got (3, 0)"),
        ([(-1, 0)], (-1, 0)),
        ([(0, 0), (0, 5)], "from 0 to 4 in layer 0, got (0, 5)"),
        ([(0, -1)], (0, -1)),
        ([(0, 1.0)], "1.0"),
        ([(True, 0)], "True"),
        ([(0, 1, 2)], "(0, 1, 2)"),
        ((1, 2), "1"),
        (["12"], "'12'"),
    ],
)
def test_a_head_that_is_not_there_is_refused_by_name(small, as_importer, heads, got):
    with pytest.raises(ValueError, match=said("heads", got)), ablate(small, heads):
        pass
    assert hooks_of(small) == 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"by": "median"}, "by"),
        ({"by": "mean"}, "ids"),
        ({"ids": IDS}, "ids"),
        ({"by": "mean", "ids": torch.zeros(3)}, "ids"),
        ({"by": "mean", "ids": IDS[:, :0]}, "ids"),
    ],
)
def test_a_mean_needs_a_text_and_zeros_need_none(small, as_importer, options, name):
    with (
        pytest.raises(ValueError, match=said(name)),
        ablate(small, [(0, 0)], **options),
    ):
        pass


@pytest.mark.parametrize("model", [nn.Linear(2, 3), nn.Module(), Around()])
def test_a_model_that_is_built_otherwise_is_refused(as_importer, model):
    with pytest.raises(ValueError, match=said("model", "blocks", type(model).__name__)):
        head_scores(model, IDS)
    with pytest.raises(ValueError, match=said("model")), ablate(model, [(0, 0)]):
        pass


@pytest.mark.parametrize("ids", [IDS[0, :4], IDS.float(), torch.tensor(5), IDS[:0]])
def test_a_text_too_short_or_of_no_tokens_has_no_scores(small, as_importer, ids):
    with pytest.raises(ValueError, match=said("ids", "whole numbers", "skip=4")):
        head_scores(small, ids)


# The real model

EIFFEL = (
    "The Eiffel Tower stands in Paris. It was built in 1889 for the World's Fair and "
    "was for many years the tallest structure in the world. Visitors climb it every "
    "day."
)


@pytest.fixture
def real():
    try:
        return real_model()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.fixture
def twice():
    torch.manual_seed(0)
    random = torch.randint(1000, 40_000, (40,))
    return torch.cat([random, random])


@pytest.mark.slow
def test_the_three_kinds_are_found_where_they_were(real, twice):
    scores = head_scores(real, torch.tensor(real.tokenizer.encode(EIFFEL)))
    assert divmod(scores.previous.argmax().item(), 9) == (16, 0)
    assert scores.previous.max().item() == pytest.approx(0.779, abs=2e-3)
    assert scores.sink.mean().item() == pytest.approx(0.4731, abs=2e-3)
    assert (scores.sink > 0.5).float().mean().item() == pytest.approx(0.389, abs=2e-3)
    assert scores.sink[:2].mean().item() < 0.1
    induction = head_scores(real, twice).induction
    assert divmod(induction.argmax().item(), 9) == (18, 6)
    assert induction.max().item() == pytest.approx(0.8946, abs=2e-3)


def test_pairs_of_numpy_are_heads_too(small, as_importer):
    with ablate(small, [(1, 1)]):
        expected = small(IDS)
    with ablate(small, [tuple(np.array([1, 1]))]):
        assert torch.equal(small(IDS), expected)


def test_scores_and_places_take_the_same_skips(small, as_importer):
    """From the first query on, a query may look at the first token."""
    scores = head_scores(small, IDS[0], skip=0)
    torch.testing.assert_close(
        scores.previous, head_scores(small, IDS[0], skip=2).previous
    )
    for skip in (-1, 0.5, True):
        with pytest.raises(ValueError, match=said("skip", "at least 0", str(skip))):
            head_scores(small, IDS[0], skip=skip)

"""What is accepted has the target's distribution, and a tree is its branches."""

import math

import numpy as np
import pytest
import torch
from caches import CACHES, LENGTH, assert_near, some_layer
from examples import said
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from attention import Attention, Rotary, accept, alibi, causal_mask, tree_mask
from attention.memory.speculative import acceptance_rate, expected_tokens, residual

P, Q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
# Chance alone makes chi square larger once in a thousand times, by degrees of freedom.
CRITICAL = {2: 13.82, 4: 18.47, 8: 26.12}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chi_square(tokens, chances):
    """How far counts of tokens are from what these chances let expect."""
    counts, must = tokens.bincount(minlength=len(chances)), len(tokens) * chances
    return ((counts - must).square() / must).sum().item()


def rounds(p, q, drafted, count=20_000, rule=accept):
    """Drafted tokens, how many were accepted, and the token after them, many times."""
    random = seeded(1)
    tokens = torch.multinomial(q, count * drafted, True, generator=random)
    tokens = tokens.view(count, drafted)
    target = p.expand(count, drafted + 1, len(p))
    return tokens, *rule(target, q.expand(count, drafted, -1), tokens, generator=random)


# The rule


def test_it_is_as_published():
    rate, left = acceptance_rate(P, Q), residual(P, Q)
    sums = torch.minimum(P, Q) + (1 - rate) * left
    tokens = torch.tensor([expected_tokens(rate.item(), 4)])
    got = torch.cat([rate[None], left, tokens, sums])
    must = torch.tensor([0.7, 1.0, 0.0, 0.0, 2.7731, 0.5, 0.3, 0.2])
    torch.testing.assert_close(got, must, rtol=0, atol=6e-5)


@given(seed=st.integers(0, 2**16), size=st.integers(1, 9), sharp=st.floats(0.1, 30))
@settings(max_examples=100, deadline=None)
def test_both_ways_together_give_the_target(seed, size, sharp):
    scores = sharp * torch.randn(2, 3, size, generator=seeded(seed)).double()
    p, q = scores.softmax(dim=-1)
    rate = acceptance_rate(p, q).unsqueeze(-1)
    sums = torch.minimum(p, q) + (1 - rate) * residual(p, q)
    torch.testing.assert_close(sums, p)
    assert (residual(p, q) >= 0).all()


def test_where_both_agree_the_residual_is_the_target():
    assert torch.equal(residual(P, P), P)


@pytest.mark.parametrize("drafted", [1, 2, 4])
def test_the_first_token_has_the_target_distribution(drafted):
    tokens, accepted, following = rounds(P, Q, drafted)
    first = torch.where(accepted > 0, tokens[:, 0], following)
    assert chi_square(first, P) < CRITICAL[2]
    share = (accepted > 0).double().mean().item()
    assert abs(share - 0.7) < 4 * math.sqrt(0.7 * 0.3 / len(tokens))


def naive(change):
    """The rule with one mistake."""

    def rule(target, draft, tokens, generator):
        p = target[..., :-1, :].gather(-1, tokens[..., None]).squeeze(-1)
        q = draft.gather(-1, tokens[..., None]).squeeze(-1)
        drawn = torch.rand(q.shape, generator=generator)
        left = residual(target, F.pad(draft, (0, 0, 0, 1)))
        kept, left = change(p, q, drawn, target, left)
        accepted = kept.long().cumprod(-1).sum(-1)
        left = left[torch.arange(len(left)), accepted]
        return accepted, torch.multinomial(left, 1, generator=generator).squeeze(-1)

    return rule


NAIVE = {
    "drawn from p": lambda p, q, drawn, target, left: (drawn * q <= p, target),
    "accepted with p": lambda p, q, drawn, target, left: (drawn <= p, left),
    "half as probable": lambda p, q, drawn, target, left: (2 * p >= q, left),
    "always accepted": lambda p, q, drawn, target, left: (drawn >= 0, left),
    "turned over": lambda p, q, drawn, target, left: (drawn * p <= q, left),
}


@pytest.mark.parametrize("change", NAIVE.values(), ids=NAIVE)
def test_the_same_test_refuses_rules_that_only_look_right(change):
    tokens, accepted, following = rounds(P, Q, 2, rule=naive(change))
    first = torch.where(accepted > 0, tokens[:, 0], following)
    assert chi_square(first, P) > 20 * CRITICAL[2]


def test_the_rule_written_without_a_mistake_passes():
    right = naive(lambda p, q, drawn, target, left: (drawn * q <= p, left))
    tokens, accepted, following = rounds(P, Q, 2, rule=right)
    first = torch.where(accepted > 0, tokens[:, 0], following)
    assert chi_square(first, P) < CRITICAL[2]


def test_two_tokens_in_a_row_have_the_joint_distribution_of_the_target():
    """Where what comes next depends on what came, in both models."""
    random, count = seeded(2), 30_000
    p, q = (1.5 * torch.randn(2, 4, 3, generator=random)).softmax(dim=-1)
    texts = torch.full((count, 1), 3)  # row 3: nothing was said yet
    texts = torch.cat([texts, torch.zeros(count, 2, dtype=torch.long)], dim=1)
    length = torch.zeros(count, dtype=torch.long)
    while (length < 2).any():
        last, guesses, rows = texts.gather(1, length[:, None])[:, 0], [], []
        for _ in range(2):
            rows.append(q[guesses[-1] if guesses else last])
            guesses.append(torch.multinomial(rows[-1], 1, generator=random)[:, 0])
        target = p[torch.stack([last, *guesses], dim=1)]
        drafted = torch.stack(guesses, dim=1)
        new, following = accept(target, torch.stack(rows, 1), drafted, generator=random)
        said_now = torch.cat([drafted, following[:, None]], dim=1)
        said_now = said_now.scatter(1, new[:, None], following[:, None])
        for place in range(3):
            fits = (place <= new) & (length + place < 2)
            at = (length + place + 1)[fits]
            texts[fits.nonzero()[:, 0], at] = said_now[fits, place]
        length = (length + new + 1).clamp(max=2)
    joint = (p[3][:, None] * p[:3]).flatten()
    assert chi_square(3 * texts[:, 1] + texts[:, 2], joint) < CRITICAL[8]


@pytest.mark.parametrize("drafted", [1, 2, 4, 8])
def test_a_round_gives_as_many_tokens_as_the_formula_says(drafted):
    _, accepted, _ = rounds(P, Q, drafted)
    counts = (accepted + 1).double()
    off = abs(counts.mean().item() - expected_tokens(0.7, drafted))
    assert off < 4 * counts.std().item() / math.sqrt(len(counts))


def test_the_formula_at_its_ends():
    assert expected_tokens(1.0, 4) == 5
    assert expected_tokens(0.0, 4) == 1
    assert expected_tokens(0.5, 0) == 1
    assert expected_tokens(0.7, 4) == pytest.approx((1 - 0.7**5) / 0.3)


def test_a_perfect_draft_is_accepted_whole_and_followed_by_the_last_row():
    p = torch.randn(5, 7, generator=seeded()).softmax(dim=-1)
    p[-1] = torch.eye(7)[3]
    for seed in range(50):
        tokens = torch.multinomial(p[:-1], 1, generator=seeded(seed))[:, 0]
        assert accept(p, p[:-1], tokens) == (4, 3)


def test_what_the_target_never_says_is_never_said():
    p = torch.tensor([0.0, 0.4, 0.0, 0.6])
    q = torch.tensor([0.4, 0.2, 0.4, 0.0])
    tokens, accepted, following = rounds(p, q, 3, count=3000)
    before = torch.arange(3) < accepted[:, None]
    assert set(tokens[before].tolist()) <= {1, 3}
    assert set(following.tolist()) <= {1, 3}


def drawn_always(number):
    """In place of torch.rand."""
    return lambda shape, dtype, **_: torch.full(shape, number, dtype=dtype)


def test_the_ends_of_what_is_drawn_decide_right(monkeypatch):
    monkeypatch.setattr(torch, "rand", drawn_always(0.0))
    q, never = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    assert accept(never, q, torch.tensor([0])) == (0, 1)
    monkeypatch.setattr(torch, "rand", drawn_always(1.0))
    for size in (3, 7, 11):  # as probable as the draft says: always accepted
        same = torch.randn(5, size, generator=seeded(size)).softmax(dim=-1)
        accepted, _ = accept(same, same[:4], torch.arange(4) % size)
        assert accepted == 4


def test_greedy_is_its_limit():
    sure = torch.eye(5)
    wanted = torch.tensor([[2, 0, 1, 4], [1, 1, 1, 1], [0, 3, 3, 2]])
    drafted = torch.tensor([[2, 0, 2], [1, 1, 1], [1, 3, 3]])
    accepted, following = accept(sure[wanted], sure[drafted], drafted)
    assert accepted.tolist() == [2, 3, 0]
    assert following.tolist() == [1, 1, 0]


def test_a_sharper_target_comes_near_to_greedy():
    scores, drafted = torch.randn(4, 5, generator=seeded()), torch.tensor([0, 1, 2])
    q = torch.full((3, 5), 0.2)
    for seed in range(20):
        for_sure = accept(F.one_hot(scores.argmax(-1), 5).float(), q, drafted)
        nearly = accept((1e4 * scores).softmax(-1), q, drafted, generator=seeded(seed))
        assert nearly == for_sure


def test_without_a_draft_it_draws_from_the_target():
    target, none = P.expand(20_000, 1, 3), torch.zeros(20_000, 0, dtype=torch.long)
    accepted, following = accept(target, target[:, :0], none, generator=seeded())
    assert (accepted == 0).all()
    assert chi_square(following, P) < CRITICAL[2]


def test_texts_of_a_batch_are_judged_by_their_own_rows():
    p = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    q = torch.tensor([[0.2, 0.5, 0.3], [0.3, 0.4, 0.3]])
    random = seeded(7)
    tokens = torch.multinomial(q, 40_000, True, generator=random).view(2, -1, 2)
    target = p[:, None, None].expand(2, 20_000, 3, 3)
    draft = q[:, None, None].expand(2, 20_000, 2, 3)
    accepted, following = accept(target, draft, tokens, generator=random)
    assert accepted.shape == following.shape == (2, 20_000)
    first = torch.where(accepted > 0, tokens[..., 0], following)
    for row, chances in zip(first, p, strict=True):
        assert chi_square(row, chances) < CRITICAL[2]


def test_a_generator_is_all_that_it_draws_from():
    p, q = torch.randn(2, 6, 9, generator=seeded()).softmax(dim=-1)
    tokens, state = torch.arange(5), torch.get_rng_state()
    twice = [accept(p, q[:5], tokens, generator=seeded(3)) for _ in range(2)]
    assert twice[0] == twice[1]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("of_p", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("of_q", [torch.float32, torch.bfloat16])
def test_probabilities_may_be_of_any_floats(of_p, of_q):
    random = seeded()
    p = torch.randn(6, 50_000, generator=random).to(of_p).softmax(dim=-1)
    q = torch.randn(5, 50_000, generator=random).to(of_q).softmax(dim=-1)
    tokens = torch.multinomial(q.float(), 1, generator=random)[:, 0].int()
    accepted, following = accept(p, q, tokens)
    assert accepted.dtype == following.dtype == torch.long
    assert p[accepted, following] > 0


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32]
)
def test_tokens_may_be_of_any_whole_numbers(dtype):
    p, tokens = torch.full((4, 50257), 1 / 50257), torch.tensor([5, 100, 7])
    must = accept(p, p[:3], tokens, generator=seeded())
    assert accept(p, p[:3], tokens.to(dtype), generator=seeded()) == must
    few = torch.full((4, 10), 0.1)
    refused(said("tokens", "0 to 9", "got 100"), few, few[:3], tokens.to(dtype))


def test_a_generator_is_one_of_torch(as_importer):
    with pytest.raises(ValueError, match=said("generator", "torch.Generator", "got 0")):
        accept(*pair(), generator=0)


def test_where_both_agree_the_gradient_is_the_targets():
    p = torch.randn(3, 5, dtype=torch.float64).softmax(dim=-1).requires_grad_()
    weights = torch.randn(3, 5)
    (gradient,) = torch.autograd.grad((residual(p, p) * weights).sum(), p)
    torch.testing.assert_close(gradient, weights.double())


# What are no probabilities


def pair(drafted=2):
    return P.repeat(drafted + 1, 1), Q.repeat(drafted, 1), torch.arange(drafted)


def changed(tensor, place, number):
    tensor[place] = number
    return tensor


def refused(match, target, draft, tokens):
    with pytest.raises(ValueError, match=match):
        accept(target, draft, tokens)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16])
def test_tokens_of_few_bits_are_the_same_tokens(dtype):
    draft, tokens = torch.rand(3, 300).softmax(-1), torch.tensor([100, 44, 127])
    target = torch.rand(4, 300).softmax(-1)
    must = accept(target, draft, tokens, generator=seeded())
    assert accept(target, draft, tokens.to(dtype), generator=seeded()) == must


def test_rows_that_do_not_sum_to_one_are_refused(as_importer):
    p, q, tokens = pair()
    refused(said("target", "sum to one", "got 2"), 2 * p, q, tokens)
    refused(said("draft", "sum to one", "got 0"), p, 0 * q, tokens)
    logits = torch.tensor([[3.0, 1, 2]]).repeat(3, 1)
    refused(said("target", "sum to one", "got 6"), logits, q, tokens)
    refused(said("draft", "sum to one", "got inf"), p, q + torch.inf, tokens)


def test_numbers_that_are_no_probabilities_are_refused(as_importer):
    p, q, tokens = pair()
    less = torch.tensor([1.2, -0.2, 0])
    refused(said("target", "at least 0", "got -0.2"), changed(p, 1, less), q, tokens)
    p, q, tokens = pair()
    refused(said("draft", "at least 0", "got nan"), p, q / 0 * 0, tokens)


def test_a_token_that_the_draft_cannot_draw_is_refused(as_importer):
    p, q, _ = pair()
    q[1] = torch.tensor([0.5, 0.5, 0.0])
    match = said("tokens", "drawn", "got 2, whose draft probability is 0")
    tokens = torch.tensor([2, 2])
    refused(match, p, q, tokens)
    for batch in ((5,), (5, 7)):
        texts = (tensor.expand(*batch, *tensor.shape) for tensor in (p, q, tokens))
        refused(match, *texts)


def test_shapes_that_do_not_fit_are_refused(as_importer):
    p, q, tokens = pair()
    refused(said("target", "(3, 3)", "a row more", "(2, 3)"), p[:2], q, tokens)
    refused(said("target", "(3, 3)", "(3, 2)"), p[:, :2], q, tokens)
    refused(said("target", "(5, 3, 3)"), p, q.expand(5, 2, 3), tokens)
    refused(said("draft", "vocabulary", "(3,)"), p, q[0], tokens)
    refused(said("tokens", "(2,)", "(1,)"), p, q, tokens[:1])
    refused(said("tokens", "whole", "float32"), p, q, tokens.float())
    refused(said("tokens", "whole", "bool"), p, q, tokens.bool())
    refused(said("tokens", "from 0 to 2", "got 3"), p, q, tokens + 2)
    refused(said("tokens", "from 0 to 2", "got -1"), p, q, tokens - 1)
    refused(said("target", "floats", "int64"), p.long(), q, tokens)
    refused(said("target", "cpu", "meta"), p.to("meta"), q, tokens)
    refused(said("target", "floats", "(3, 0)"), p[:, :0], q[:, :0], tokens)
    with pytest.raises(TypeError, match=said("tokens", "got list")):
        accept(p, q, [0, 1])


MISFITS = {  # of two distributions over one vocabulary, and what is said of each
    "of another vocabulary": (P, Q[:2], said("draft", "(3,)", "got", "(2,)")),
    "for another place": (P, Q.expand(2, 3), said("draft", "(3,)", "got", "(2, 3)")),
    "on another device": (P, Q.to("meta"), said("draft", "cpu", "got", "meta")),
    "whole numbers": (P.long(), Q, said("target", "floats", "got", "int64")),
    "booleans": (P > 0, Q > 0, said("target", "floats", "got", "bool")),
    "complex": (P, Q.cfloat(), said("draft", "floats", "got", "complex")),
    "one number": (P[0], Q[0], said("target", "vocabulary", "got", "()")),
    "no token": (P[:0], Q[:0], said("target", "one token", "got", "(0,)")),
    "no tensor": (P, Q.tolist(), said("draft", "Tensor", "got list", "as_tensor")),
}


@pytest.mark.parametrize("formula", [residual, acceptance_rate])
@pytest.mark.parametrize("name", MISFITS)
def test_a_formula_of_two_distributions_refuses_what_are_not_two(
    formula, name, as_importer
):
    target, draft, match = MISFITS[name]
    with pytest.raises((TypeError, ValueError), match=match):
        formula(target, draft)


@pytest.mark.parametrize("rate", [-0.1, 1.1, math.nan, "0.5", None, 1j])
def test_a_rate_that_is_no_probability_is_refused(rate, as_importer):
    with pytest.raises(ValueError, match=said("rate", "from 0 to 1", "got", rate)):
        expected_tokens(rate, 4)


def test_a_rate_may_be_the_tensor_that_acceptance_rate_gives(as_importer):
    assert expected_tokens(acceptance_rate(P, Q), 4) == pytest.approx(2.7731)


@pytest.mark.parametrize("drafted", [-1, 2.5, True])
def test_a_draft_of_no_whole_number_is_refused(drafted, as_importer):
    with pytest.raises(ValueError, match=said("drafted", "got", drafted)):
        expected_tokens(0.5, drafted)


# Trees

PARENTS = [-1, 0, 0, 1, 1, 2]


def test_a_tree_is_as_published():
    mask, depths = tree_mask(PARENTS)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1],
    ]
    assert depths.tolist() == [0, 1, 1, 2, 2, 2]


def test_a_chain_is_a_text_and_roots_are_strangers():
    mask, depths = tree_mask([-1, 0, 1, 2])
    assert torch.equal(mask, causal_mask(4))
    assert depths.tolist() == [0, 1, 2, 3]
    mask, depths = tree_mask([-1, -1, -1])
    assert torch.equal(mask, torch.eye(3).bool())
    assert depths.tolist() == [0, 0, 0]
    mask, depths = tree_mask([])
    assert mask.shape == (0, 0)
    assert depths.shape == (0,)


SLOTS = {
    "rotary": {"process_heads": Rotary(8)},
    "bias": {"bias": alibi(4)},
    "grouped": {"process_heads": Rotary(8), "num_kv_heads": 2},
}
TREES = [PARENTS, [-1, -1, 0, 1, 1, 2, 5], [-1, 0, 1, 2, 3]]
EXACT = [name for name, kept in CACHES.items() if not (kept.error or kept.drops)]


@torch.no_grad()
@pytest.mark.parametrize("parents", TREES)
@pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)
@pytest.mark.parametrize("name", EXACT)
def test_a_tree_in_one_pass_gives_what_each_branch_gives_alone(name, slots, parents):
    torch.manual_seed(0)
    layer = Attention(16, 16, 4, head_dim=8, masks=(), **slots)
    past, nodes = torch.randn(2, 5, 16), torch.randn(2, len(parents), 16)
    mask, depths = tree_mask(parents)
    cache = CACHES[name].make()
    layer(past, causal_mask(5), cache=cache)
    seen = F.pad(mask, (5, 0), value=True)
    got = layer(nodes, seen, positions=5 + depths, cache=cache)
    for node in range(len(parents)):
        branch = torch.cat([past, nodes[:, mask[node]]], dim=1)
        alone = layer(branch, causal_mask(branch.shape[1]))
        torch.testing.assert_close(got[:, node], alone[:, -1])
    path = mask[-1]  # the last branch is accepted, and becomes text
    cache.truncate(5)
    length = 5 + int(path.sum())
    own = causal_mask(length)[5:]
    layer(nodes[:, path], own, cache=cache)
    then, own = torch.randn(2, 1, 16), torch.ones(1, length + 1, dtype=torch.bool)
    text = torch.cat([past, nodes[:, path], then], dim=1)
    must = layer(text, causal_mask(length + 1))[:, -1:]
    torch.testing.assert_close(layer(then, own, cache=cache), must)


@pytest.mark.parametrize("wrong", [0, 1, 5, -2, 1.0, None, True])
def test_a_parent_that_is_no_earlier_node_is_refused(wrong, as_importer):
    with pytest.raises(ValueError, match=said("parents", "node 0", "got", wrong)):
        tree_mask([wrong, 0])


@pytest.mark.parametrize("wrong", [None, 3, iter([-1])])
def test_parents_come_in_a_sequence(wrong, as_importer):
    with pytest.raises(ValueError, match=said("parents", "a sequence", "got")):
        tree_mask(wrong)


# Rolled back


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CACHES)
def test_every_cache_forgets_what_was_rejected(name, dtype):
    """Rounds of one token that is known and four guesses, some of them right."""
    kept, random = CACHES[name], seeded(5)
    layer, x = some_layer(kept, {"process_heads": Rotary(8)}, dtype)
    whole, cache, start = layer(x), kept.make(), 0
    while start < LENGTH:
        right = int(torch.randint(0, 5, (), generator=random))
        right = min(right + 1, LENGTH - start)
        guess = torch.randn(2, 5 - right if right < 5 else 0, 16, generator=random)
        piece = torch.cat([x[:, start : start + right], guess.to(dtype)], dim=1)
        got = layer(piece, cache=cache)
        assert_near(kept, got[:, :right], whole[:, start : start + right])
        start += right
        if start < kept.oldest(cache):  # it has dropped what it would need
            with pytest.raises(ValueError, match=said("length", "expected")):
                cache.truncate(start)
            return
        cache.truncate(start)
        assert cache.length == start


def test_a_number_of_numpy_is_expected_like_one_of_python(as_importer):
    assert expected_tokens(0.5, np.int8(127)) == expected_tokens(0.5, 127)

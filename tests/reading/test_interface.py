"""What must stay true of `attention.reading.interface`, without transformers."""

import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from examples import said
from torch import nn

from attention import attend, attention_weights, flash_attend
from attention.reading.interface import as_interface, register_forms

equal = torch.testing.assert_close
CAUSAL, BOTH = nn.Module(), nn.Module()
CAUSAL.is_causal, BOTH.is_causal = True, False
LEAST = torch.finfo(torch.float32).min


@pytest.fixture
def inputs():
    random = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=random)
    return draw(2, 6, 5, 4), draw(2, 3, 7, 4), draw(2, 3, 7, 11)


@pytest.fixture
def seen():
    seen = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[..., 0] = True
    return seen


@pytest.mark.parametrize("form", [attend, flash_attend])
def test_the_context_has_the_length_before_the_heads(form, inputs, seen):
    context, weights = as_interface(form)(CAUSAL, *inputs, seen)
    equal(context, attend(*inputs, seen).transpose(1, 2))
    assert context.shape == (2, 5, 6, 11)
    assert context.is_contiguous()
    assert weights is None


@pytest.mark.parametrize("form", [attend, flash_attend])
@pytest.mark.parametrize("least", [LEAST, -torch.inf, 0.75 * LEAST])
def test_what_is_added_hides_and_biases(form, least, inputs, seen):
    random = torch.Generator().manual_seed(2)
    bias = torch.randn(2, 6, 5, 7, generator=random)
    added = torch.where(seen, bias, least)
    options = {"output_attentions": True, "scaling": 0.7}
    context, weights = as_interface(form)(CAUSAL, *inputs, added, **options)
    equal(context, attend(*inputs, seen, bias=bias, scale=0.7).transpose(1, 2))
    must = attention_weights(*inputs[:2], seen, bias=bias, scale=0.7)
    equal(weights, must)


def test_floats_that_hide_alone_need_no_bias(inputs, seen):
    def plain(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
        return attend(queries, keys, values, mask)  # it takes no bias

    added = torch.zeros(seen.shape).masked_fill(~seen, LEAST)
    context, _ = as_interface(plain)(CAUSAL, *inputs, added, scaling=0.5)
    equal(context, attend(*inputs, seen).transpose(1, 2))


def test_a_learned_bias_keeps_its_gradient_where_it_is_zero(inputs):
    added = torch.zeros(1, 1, 5, 7, requires_grad=True)
    as_interface(attend)(BOTH, *inputs, added)[0].square().sum().backward()
    assert added.grad.abs().max() > 0


def test_a_nan_that_is_added_is_not_taken_for_hidden(inputs):
    added = torch.zeros(1, 1, 5, 7)
    added[0, 0, 3, 2] = torch.nan
    context, _ = as_interface(attend)(BOTH, *inputs, added)
    assert context[:, 3].isnan().all()
    assert context[:, :3].isfinite().all()


def test_without_a_mask_the_module_says_whether_it_is_causal(inputs):
    queries, keys, values = inputs
    five = keys[..., :5, :], values[..., :5, :]
    both, _ = as_interface(attend)(BOTH, queries, *five)
    equal(both, attend(queries, *five).transpose(1, 2))
    ahead, _ = as_interface(attend)(CAUSAL, queries, *five)
    equal(ahead, attend(queries, *five, causal=True).transpose(1, 2))
    for word, must in (True, ahead), (False, both):
        other = CAUSAL if not word else BOTH
        context, _ = as_interface(attend)(other, queries, *five, is_causal=word)
        equal(context, must)
    equal(as_interface(attend)(nn.Module(), queries, *five)[0], ahead)


def test_causal_counts_from_the_start_when_slots_are_empty(inputs):
    queries, keys, values = inputs
    keys[..., 5:, :], values[..., 5:, :] = torch.nan, torch.nan
    context, _ = as_interface(attend)(CAUSAL, *inputs)
    must = attend(queries, keys[..., :5, :], values[..., :5, :], causal=True)
    equal(context, must.transpose(1, 2))


def test_one_query_sees_all_keys(inputs):
    queries, keys, values = inputs
    one = queries[..., :1, :]
    context, _ = as_interface(attend)(CAUSAL, one, keys, values)
    equal(context, attend(one, keys, values).transpose(1, 2))


@pytest.mark.parametrize("count", [5, 1])
def test_a_window_holds_where_no_mask_says_so(count, inputs):
    queries, keys, values = inputs
    queries = queries[..., :count, :]
    if count > 1:
        keys, values = keys[..., :5, :], values[..., :5, :]
    given = queries, keys, values
    context, _ = as_interface(attend)(CAUSAL, *given, sliding_window=3)
    equal(context, attend(*given, causal=True, window=3).transpose(1, 2))
    wide, _ = as_interface(attend)(CAUSAL, *given, sliding_window=7)
    equal(wide, attend(*given, causal=True).transpose(1, 2))


def test_a_mask_is_taken_at_its_word_whatever_the_window(inputs, seen):
    with_window, _ = as_interface(attend)(CAUSAL, *inputs, seen, sliding_window=2)
    equal(with_window, attend(*inputs, seen).transpose(1, 2))


def test_a_bias_of_positions_is_added_with_a_mask_and_without(inputs, seen):
    bias = torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(3))
    call = partial(as_interface(attend), position_bias=bias)
    must = attend(*inputs, seen, bias=bias)
    equal(call(BOTH, *inputs, seen)[0], must.transpose(1, 2))
    equal(call(BOTH, *inputs)[0], attend(*inputs, bias=bias).transpose(1, 2))
    queries, keys, values = inputs
    must = attend(
        queries, keys[..., :5, :], values[..., :5, :], bias=bias[..., :5], causal=True
    )
    equal(call(CAUSAL, *inputs)[0], must.transpose(1, 2))
    added = torch.zeros(seen.shape).masked_fill(~seen, LEAST) + 0.5 * seen
    must = attend(*inputs, seen, bias=bias + 0.5)
    equal(call(BOTH, *inputs, added)[0], must.transpose(1, 2))


def test_dropout_reaches_the_form(inputs, seen):
    got = []

    def telling(queries, keys, values, mask=None, *, dropout_p, causal, scale=None):
        got.append((dropout_p, causal, scale))
        return attend(queries, keys, values, mask)

    as_interface(telling)(CAUSAL, *inputs, seen, dropout=0.25, scaling=0.3)
    as_interface(telling)(CAUSAL, *inputs, seen, scaling=0.5)
    assert got == [(0.25, False, 0.3), (0.0, False, None)]


def test_the_scale_that_every_form_has_need_not_be_taken(inputs, as_importer):
    def plain(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
        return attend(queries, keys, values, mask, causal=causal)

    context, _ = as_interface(plain)(BOTH, *inputs, scaling=0.5)
    equal(context, attend(*inputs).transpose(1, 2))
    with pytest.raises(ValueError, match=said("form", "scale", "plain")):
        as_interface(plain)(BOTH, *inputs, scaling=0.25)


def test_what_no_form_knows_is_refused_by_name(inputs, as_importer):
    for name, value in ("softcap", 50.0), ("s_aux", torch.zeros(6)):
        with pytest.raises(ValueError, match=said(name, "eager")):
            as_interface(attend)(CAUSAL, *inputs, **{name: value})
        as_interface(attend)(BOTH, *inputs, **{name: None})


def test_without_transformers_it_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        register_forms()


def test_forms_are_entered_all_or_none(monkeypatch, as_importer):
    """With tables of our own in the place of those of transformers."""

    entered = {}

    class Table:
        def get(self, name):
            return entered.get(name)

        @classmethod
        def register(cls, name, entry):
            entered[name] = entry

    tables = {"AttentionInterface": Table, "AttentionMaskInterface": Table}
    made = SimpleNamespace(**tables)
    monkeypatch.setitem(sys.modules, "transformers", made)
    masking = SimpleNamespace(sdpa_mask=None)
    monkeypatch.setitem(sys.modules, "transformers.masking_utils", masking)
    for wrong in ({"refused": 7}, {"flash": attend}):
        with pytest.raises(ValueError, match="form"):
            register_forms(first=attend, **wrong)
        assert entered == {}
    assert register_forms(first=attend) == ("first",)
    assert "first" in entered

"""What must stay true of every cache, whatever it keeps: see `caches.py`."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from caches import (
    CACHES,
    FAULTS,
    FAULTS_BESIDE,
    LENGTH,
    SLOTS,
    assert_near,
    looked_up,
    some_layer,
    some_piece,
)
from examples import said
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from attention.core.layer import Cache

HERE = Path(__file__).parent
WAYS = [[], [1], [12], [*range(1, 13)], [5, 9], [2, 2, 7], [0, 13], [4, 5, 6, 7]]
# A run is a text of its own: 20 of each cache, 1,000 with `--hypothesis-profile long`.
RUNS = int(os.environ.get("CACHE_RUNS", settings().max_examples // 10))

cached = pytest.mark.parametrize("name", CACHES)
slotted = pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS.keys())


def kinds():
    """Each cache with all slots in float32, and in each other dtype with all at once.

    What is stored depends on the dtype, and what is asked of it on the slots.
    """
    found = [
        pytest.param(name, dtype, slots, id=f"{name}-{dtype}-{slot}")
        for name, kept in CACHES.items()
        for dtype in kept.dtypes
        for slot, slots in SLOTS.items()
        if dtype == torch.float32 or slot == "all"
    ]
    return pytest.mark.parametrize(("name", "dtype", "slots"), found)


def in_pieces(layer, x, ends, cache, mask=None, **first):
    """A text, cut at `ends`; positions, if given, are those of the whole."""
    start, given = 0, []
    for part in torch.tensor_split(x, ends, dim=-2):
        end = start + part.shape[-2]
        own = None if mask is None else mask[..., :end]
        places = {name: where[..., start:end] for name, where in first.items()}
        given.append(layer(part, own, cache=cache, **places))
        start = end
    return torch.cat(given, dim=-2)


# In pieces as in the whole


@cached
def test_it_keeps_the_promise_of_caches(name):
    cache = CACHES[name].make()
    assert isinstance(cache, Cache)
    assert cache.length == 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.uint16])
@cached
def test_positions_may_be_whole_numbers_of_any_kind(name, dtype):
    kept = CACHES[name]
    *tensors, positions = some_piece(5)
    narrow, wide = kept.make(), kept.make()
    got = narrow.extend(*tensors, positions.to(dtype))
    for ours, must in zip(got, wide.extend(*tensors, positions), strict=True):
        assert ours.dtype == must.dtype
        assert torch.equal(ours, must)


@torch.no_grad()
@kinds()
def test_any_split_gives_what_the_whole_gives(name, dtype, slots):
    kept = CACHES[name]
    layer, x = some_layer(kept, slots, dtype)
    whole = layer(x)
    for ends in WAYS:
        assert_near(kept, in_pieces(layer, x, ends, kept.make()), whole)


@torch.no_grad()
@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
@cached
def test_a_batch_may_have_any_number_of_axes(name, batch):
    kept = CACHES[name]
    layer, x = some_layer(kept, SLOTS["all"], torch.float32, batch)
    got = in_pieces(layer, x, [4, 5, 9], kept.make())
    assert_near(kept, got, layer(x))


@torch.no_grad()
@slotted
@cached
def test_a_text_padded_on_the_left_says_what_it_says_alone(name, slots):
    kept = CACHES[name]
    if kept.drops:
        pytest.skip("it hands back fewer keys than a mask of the caller's would hide")
    layer, x = some_layer(kept, slots, torch.float32)
    real = torch.ones(2, LENGTH, dtype=torch.bool)
    real[0, :5] = False
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    alone = layer(x[0, 5:]), layer(x[1])
    for ends in WAYS:  # some pieces are padding and nothing else
        cache, mask = kept.make(), real[:, None, None, :]
        got = in_pieces(layer, x, ends, cache, mask, positions=positions)
        assert_near(kept, got[0, 5:], alone[0])
        assert_near(kept, got[1], alone[1])


@torch.no_grad()
@cached
def test_a_text_that_has_ended_may_stand_still_while_others_go_on(name):
    kept = CACHES[name]
    layer, x = some_layer(kept, SLOTS["rotary"], torch.float32)
    cache = kept.make()
    layer(x[:, :6], cache=cache)
    for token in range(6, LENGTH):
        positions = torch.tensor([[5], [token]])
        got = layer(x[:, token : token + 1], positions=positions, cache=cache)
    assert_near(kept, got[1], layer(x[1])[-1:])


# Rolled back


@torch.no_grad()
@kinds()
def test_what_was_rolled_back_leaves_no_trace(name, dtype, slots):
    kept = CACHES[name]
    layer, x = some_layer(kept, slots, dtype)
    whole, other = layer(x), torch.randn_like(x)
    for start, wrong in ((1, 1), (3, 5), (6, 2), (4, 9), (9, 4), (12, 1)):
        cache = kept.make()
        in_pieces(layer, x[..., :start, :], [2, 3], cache)
        in_pieces(layer, other[..., :wrong, :], [1], cache)
        if start < kept.oldest(cache):
            continue
        cache.truncate(start)
        assert cache.length == start
        got = layer(x[..., start:, :], cache=cache)
        assert_near(kept, got, whole[..., start:, :])


@torch.no_grad()
@cached
def test_it_goes_back_as_far_as_it_can_and_refuses_to_go_further(name, as_importer):
    kept = CACHES[name]
    for length in range(LENGTH):
        layer, x = some_layer(kept, SLOTS["rotary"], torch.float32)
        cache = kept.make()
        in_pieces(layer, x, [5, 6, 9], cache)
        if length >= kept.oldest(cache):
            cache.truncate(length)
            got = layer(x[..., length:, :], cache=cache)
        else:
            with pytest.raises(ValueError, match=said("length", "expected")):
                cache.truncate(length)
            assert cache.length == LENGTH
            got = layer(x[..., :0, :], cache=cache)
        assert_near(kept, got, layer(x)[..., LENGTH - got.shape[-2] :, :])


@torch.no_grad()
@pytest.mark.parametrize("length", [14, -1, True, 2.0, None])
@cached
def test_a_length_that_it_does_not_have_is_refused(name, length, as_importer):
    kept = CACHES[name]
    layer, x = some_layer(kept, {}, torch.float32)
    cache = kept.make()
    layer(x, cache=cache)
    with pytest.raises(ValueError, match=said("length", "expected", "got")):
        cache.truncate(length)
    assert cache.length == LENGTH


@torch.no_grad()
@cached
def test_a_length_of_numpy_is_kept_as_one_of_python(name, as_importer):
    kept = CACHES[name]
    layer, x = some_layer(kept, {}, torch.float32)
    cache = kept.make()
    layer(x, cache=cache)
    cache.truncate(np.uint8(LENGTH))  # or it would begin anew at 256
    assert type(cache.length) is int


@torch.no_grad()
@cached
def test_a_copy_goes_its_own_way(name):
    kept = CACHES[name]
    for twin_of in (copy.copy, copy.deepcopy):
        layer, x = some_layer(kept, SLOTS["rotary"], torch.float32)
        cache, other = kept.make(), torch.randn_like(x)
        in_pieces(layer, x[:, :6], [2, 5], cache)
        twin = twin_of(cache)
        layer(other[:, 6:9], cache=twin)
        layer(x[:, 6:8], cache=cache)
        layer(other[:, 9:10], cache=twin)
        assert (cache.length, twin.length) == (8, 10)
        assert_near(kept, layer(x[:, 8:], cache=cache), layer(x)[:, 8:])
        both = torch.cat([x[:, :6], other[:, 6:]], dim=1)
        assert_near(kept, layer(other[:, 10:], cache=twin), layer(both)[:, 10:])


@torch.no_grad()
@cached
def test_a_copy_keeps_its_first_token_when_the_other_begins_anew(name):
    kept = CACHES[name]
    first, second, other = some_piece(1), some_piece(1, start=1), some_piece(1)
    must = [torch.cat(pair, dim=-2) for pair in zip(first[:2], second[:2], strict=True)]
    for anew, goes_on in ((0, 1), (1, 0)):
        cache = kept.make()
        cache.extend(*first)
        both = cache, copy.copy(cache)
        both[anew].truncate(0)
        both[anew].extend(*other)
        for got, whole in zip(both[goes_on].extend(*second), must, strict=False):
            assert_near(kept, got, whole)


# What it gives


@torch.no_grad()
@cached
def test_an_empty_cache_gives_back_what_it_was_given(name):
    kept = CACHES[name]
    if kept.drops or kept.error:
        pytest.skip("it drops some, or rounds")
    given = some_piece(5)
    for one, other in zip(kept.make().extend(*given), given, strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr(), "its memory is its own"


@torch.no_grad()
@cached
def test_positions_of_each_row_and_shared_ones_may_follow_each_other(name):
    own, shared = torch.tensor([[2, 3], [2, 4]]), torch.arange(2)
    cache = CACHES[name].make()
    for places in (shared, own, torch.tensor([5])):
        held = cache.extend(*some_piece(places.shape[-1])[:2], places)
    must = torch.tensor([[0, 1, 2, 3, 5], [0, 1, 2, 4, 5]])
    assert torch.equal(held[2], must[:, -held[2].shape[-1] :])  # a window drops some


@torch.no_grad()
@cached
def test_keys_and_values_may_differ_in_width(name):
    kept = CACHES[name]
    if not kept.uneven:
        pytest.skip("it keeps heads of one width")
    cache, pieces = kept.make(), [some_piece(n, widths=(16, 8)) for n in (3, 2)]
    cache.extend(*pieces[0])
    keys, values, _ = cache.extend(*pieces[1][:2], torch.tensor([3, 4]))
    for got, number in ((keys, 0), (values, 1)):
        must = torch.cat([piece[number] for piece in pieces], dim=-2)
        assert_near(kept, got, must[..., -got.shape[-2] :, :])


# Gradients


def gradients(kept, total, trained):
    """Those of what `total()` gives; None if the cache has none, and says so."""
    if kept.gradients:
        return torch.autograd.grad(total(), trained)
    try:
        return torch.autograd.grad(total(), trained)
    except (ValueError, RuntimeError) as error:
        if not re.search(said("expected", "gradient", "got"), str(error)):
            raise


@cached
def test_gradients_are_right_or_refused(name, as_importer):
    """Never wrong in silence, not even when a text is rolled back in between."""
    kept = CACHES[name]
    layer, x = some_layer(kept, SLOTS["rotary"], torch.float64)
    trained = list(layer.requires_grad_().parameters())
    must = torch.autograd.grad(layer(x).square().sum(), trained)
    cache = kept.make()

    def total():
        parts = []
        for start, end in ((0, 5), (5, 6), (6, 13)):
            if start == 6 and kept.oldest(cache) <= 5:
                layer(torch.randn_like(x[:, :1]), cache=cache)
                cache.truncate(6)
            parts.append(layer(x[:, start:end], cache=cache).square().sum())
        with torch.no_grad():  # what is written afterwards does not disturb them
            cache.truncate(max(6, kept.oldest(cache)))
            layer(x[:, :3], cache=cache, positions=torch.arange(20, 23))
        return sum(parts)

    got = gradients(kept, total, trained)
    assert (got is not None) == kept.gradients
    for one, other in zip(got or must, must, strict=True):
        assert_near(kept, one, other)


@cached
def test_only_queries_may_be_trained(name, as_importer):
    kept = CACHES[name]
    layer, x = some_layer(kept, {}, torch.float64)
    weight = layer.W_query.weight.requires_grad_()
    must = torch.autograd.grad(layer(x).square().sum(), [weight])

    def total():
        return in_pieces(layer, x, [4, 5, 6], kept.make()).square().sum()

    for one, other in zip(gradients(kept, total, [weight]) or must, must, strict=True):
        assert_near(kept, one, other)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < (2, 7), reason="it sees into no `with`")
def test_a_compiled_step_is_one_graph_and_says_the_same():
    # The shape checks of a test run cannot be traced, so another process does it.
    names = ["KVCache", "PagedCache", "QuantizedCache, 8 bits", "RollingCache, sinks"]
    paths = map(str, (HERE, HERE.parent, HERE.parents[1]))
    done = subprocess.run(
        [sys.executable, "-c", f"import caches; caches.compile_steps({names})"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@cached
def test_a_prompt_in_inference_mode_may_be_gone_on_with_outside(name):
    kept = CACHES[name]
    layer, x = some_layer(kept, SLOTS["rotary"], torch.float32)
    cache = kept.make()
    with torch.inference_mode():
        layer(x[:, :5], cache=cache)
    with torch.no_grad():
        got = layer(x[:, 5:8], cache=cache)
    with torch.inference_mode():
        got = torch.cat([got, layer(x[:, 8:], cache=cache)], dim=1)
    assert_near(kept, got.clone(), layer(x)[:, 5:])


# What does not fit


def state(cache):
    positions = getattr(cache, "positions", None)
    return cache.length, None if positions is None else positions.tolist()


def assert_refused(cache, fault, piece):
    change, match = fault
    before = state(cache)
    with pytest.raises(ValueError, match=match):
        cache.extend(*change(*piece))
    assert state(cache) == before


@torch.no_grad()
@pytest.mark.parametrize("fault", [*FAULTS, *FAULTS_BESIDE])
@cached
def test_a_piece_that_does_not_fit_is_refused_and_changes_nothing(
    name, fault, as_importer
):
    kept = CACHES[name]
    cache, wrong = kept.make(), (FAULTS | FAULTS_BESIDE)[fault]
    if fault in FAULTS:
        assert_refused(cache, wrong, some_piece(3))
        assert cache.length == 0
    first, then = some_piece(5), some_piece(2, start=5)
    cache.extend(*first)
    assert_refused(cache, wrong, some_piece(3, start=5))
    held = cache.extend(*then)
    whole = [torch.cat(pair, dim=-2) for pair in zip(first[:2], then[:2], strict=True)]
    queries, places = torch.randn(2, 6, 2, 8), torch.tensor([5, 6])
    must = looked_up(kept, queries, places, (*whole, torch.arange(7)))
    assert_near(kept, looked_up(kept, queries, places, held), must)


def refusing(*tensors, **options):
    raise ValueError("a form that refuses")


@torch.no_grad()
@pytest.mark.parametrize("new", [1, 3])
@cached
def test_a_call_that_its_form_refuses_changes_nothing(name, new, as_importer):
    """The cache was extended by then, and may have dropped what it needs again."""
    kept = CACHES[name]
    layer, x = some_layer(kept, SLOTS["all"], torch.float32)
    whole, cache, form = layer(x), kept.make(), layer.attend
    for end in range(LENGTH - new):
        before, reach = state(cache), kept.oldest(cache)
        layer.attend = refusing
        with pytest.raises(ValueError, match="a form that refuses"):
            layer(x[:, end : end + new], cache=cache)
        assert (state(cache), kept.oldest(cache)) == (before, reach)
        layer.attend = form
        assert_near(kept, layer(x[:, [end]], cache=cache), whole[:, [end]])


@pytest.mark.parametrize("place", range(3))
@cached
def test_what_is_no_tensor_is_refused(name, place, as_importer):
    piece = list(some_piece(3))
    piece[place] = piece[place].tolist()
    with torch.no_grad(), pytest.raises(TypeError, match="expected"):
        CACHES[name].make().extend(*piece)


# At random


class Texts(RuleBasedStateMachine):
    """A cache and its copies beside what they should hold, in plain tensors."""

    kept = None

    @initialize(
        seed=st.integers(0, 2**16),
        batch=st.sampled_from([(), (2,), (2, 3)]),
        heads=st.integers(1, 3),
        ragged=st.booleans(),
        data=st.data(),
    )
    def begin(self, seed, batch, heads, ragged, data):
        torch.manual_seed(seed)
        self.dtype = data.draw(st.sampled_from(self.kept.dtypes))
        self.shape = {"batch": batch, "heads": heads, "dtype": self.dtype}
        self.ragged = ragged and bool(batch) and not self.kept.drops
        self.texts = [(self.kept.make(), [])]

    def piece(self, model, new):
        """New tokens, whose positions go on; in ragged ones some wait at 0."""
        keys, values, places = some_piece(new, **self.shape)
        if self.ragged:
            places = places.expand(*self.shape["batch"], new)
            pad = torch.randint(0, 3, (*self.shape["batch"], 1))
            places = places if model else (places - pad).clamp(min=0)
        if model:
            places = places + 1 + model[-1][2].amax(dim=-1, keepdim=True)
        return keys, values, places

    def chosen(self, data):
        return data.draw(st.sampled_from(range(len(self.texts))), label="text")

    @rule(data=st.data(), new=st.integers(1, 5))
    def extend(self, data, new):
        cache, model = self.texts[self.chosen(data)]
        piece = self.piece(model, new)
        with torch.no_grad():
            held = cache.extend(*piece)
        model += [
            [t.narrow(a, n, 1) for t, a in zip(piece, (-2, -2, -1), strict=True)]
            for n in range(new)
        ]
        whole = [
            torch.cat(t, a)
            for t, a in zip(zip(*model, strict=True), (-2, -2, -1), strict=True)
        ]
        batch, heads = self.shape["batch"], self.shape["heads"]
        queries = torch.randn(*batch, 2 * heads, new, 8, dtype=self.dtype)
        must = looked_up(self.kept, queries, piece[2], whole)
        got = looked_up(self.kept, queries, piece[2], held)
        assert_near(self.kept, got, must)
        assert cache.length == len(model)

    @rule(data=st.data())
    def truncate(self, data):
        cache, model = self.texts[self.chosen(data)]
        length = data.draw(st.integers(0, len(model)), label="length")
        if length >= self.kept.oldest(cache):
            cache.truncate(length)
            del model[length:]
        else:
            with pytest.raises(ValueError, match=said("length", "expected")):
                cache.truncate(length)
        assert cache.length == len(model)

    @precondition(lambda self: len(self.texts) < 4)
    @rule(data=st.data())
    def fork(self, data):
        cache, model = self.texts[self.chosen(data)]
        self.texts.append((copy.copy(cache), list(model)))

    @precondition(lambda self: len(self.texts) > 1)
    @rule(data=st.data())
    def free(self, data):
        cache, _ = self.texts.pop(self.chosen(data))
        getattr(cache, "free", lambda: None)()

    @rule(data=st.data(), fault=st.sampled_from([*FAULTS, *FAULTS_BESIDE]))
    def refuse(self, data, fault):
        cache, model = self.texts[self.chosen(data)]
        piece = self.piece(model, 3)
        few = self.shape["heads"] == 1 or not self.shape["batch"] or self.ragged
        if few or (fault in FAULTS_BESIDE and not model):
            return
        assert_refused(cache, (FAULTS | FAULTS_BESIDE)[fault], piece)


@cached
def test_whatever_is_done_to_it_it_holds_what_it_should(name, as_importer):
    machine = type(name, (Texts,), {"kept": CACHES[name]})
    few = settings(max_examples=RUNS, stateful_step_count=20)
    run_state_machine_as_test(machine, settings=few)

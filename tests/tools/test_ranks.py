"""Ranks: they start together, agree before they send, and end together, in words."""

import math
import multiprocessing
import os
import random
import signal
import sys
import threading
import time

import numpy
import pytest
import torch
import torch.distributed as dist
from examples import said

from attention import attend
from attention.tools.ranks import (
    agree,
    exchange,
    fit_call,
    from_all,
    place_in,
    post,
    run_ranks,
)

LONG = 600  # seconds; a limit that only a call which never ends would meet


def own_rank():
    return dist.get_rank()


def test_results_come_back_by_rank():
    assert run_ranks(own_rank, 3) == [0, 1, 2]


def test_arguments_reach_every_rank_and_tensors_come_back():
    def twice(tensor, more):
        return 2 * tensor + more + dist.get_rank()

    found = run_ranks(twice, 2, torch.arange(3), 5)
    assert [tensor.tolist() for tensor in found] == [[5, 7, 9], [6, 8, 10]]


def test_a_rank_has_one_thread_and_autograd_works_in_it_after_it_has_worked_here():
    def slope():
        x = torch.ones(3, requires_grad=True)
        x.square().sum().backward()
        return x.grad.tolist(), torch.get_num_threads()

    slope()
    assert run_ranks(slope, 2) == [([2.0] * 3, 1)] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="its own name is looked up there")
def test_ranks_meet_within_this_machine_unless_told_otherwise(monkeypatch):
    def asked():
        return os.environ["GLOO_SOCKET_IFNAME"]

    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert run_ranks(asked, 2) == ["lo"] * 2
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo,lo")
    assert run_ranks(asked, 2) == ["lo,lo"] * 2


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(7)


def fail():
    raise KeyError("what is missing")


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (kill_itself, said("rank 2 of 3", "signal 9")),
        (leave, said("rank 2 of 3", "exit code 7")),
        (fail, said("rank 2 of 3", "KeyError", "what is missing")),
    ],
)
def test_the_rank_that_failed_first_is_named_and_no_process_is_left(end, words):
    def work():
        exchange([[torch.ones(1)]] * 3, [[(1,)]] * 3, None)()
        if dist.get_rank() == 2:
            end()
        exchange([[torch.ones(1)]] * 3, [[(1,)]] * 3, None)()

    with pytest.raises(RuntimeError, match=words):
        run_ranks(work, 3, seconds=LONG)  # nobody waits for those that are gone
    assert not multiprocessing.active_children()


def sum_up():
    dist.all_reduce(torch.ones(1))


def take_from_next():
    dist.recv(torch.ones(1), (dist.get_rank() + 1) % 2)


def swap_with_next():
    exchange([[torch.ones(1)]] * 2, [[(1,)]] * 2, None)()


@pytest.mark.parametrize("call", [sum_up, take_from_next, swap_with_next, dist.barrier])
def test_an_error_of_the_function_comes_before_a_connection_that_broke_for_it(call):
    def work():
        if dist.get_rank() == 1:
            fail()
        call()

    with pytest.raises(RuntimeError, match=said("rank 1 of 2", "KeyError", "missing")):
        run_ranks(work, 2, seconds=LONG)


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_fails_on_all_ranks_at_once_is_told(ranks):
    with pytest.raises(RuntimeError, match=said(f"of {ranks}", "KeyError", "missing")):
        run_ranks(fail, ranks)


def test_a_rank_that_cannot_be_reached_at_all_is_named():
    def work():
        def refused(*_):
            raise RuntimeError("connection closed")

        def lost(*call):
            transfer = made(*call)
            transfer.op = refused
            return transfer

        made, dist.P2POp = dist.P2POp, lost
        try:
            exchange([[torch.ones(1)]] * 2, [[(1,)]] * 2, None)()
        except RuntimeError as error:
            return str(error)

    told = [f"group: expected 2 ranks, got no answer from rank {n}" for n in (1, 0)]
    assert run_ranks(work, 2) == told


def test_a_rank_that_hangs_is_named_by_those_that_wait_for_it():
    def work():
        if dist.get_rank() == 1:
            time.sleep(60)
        exchange([[torch.ones(1)]] * 3, [[(1,)]] * 3, None)()

    with pytest.raises(RuntimeError, match=said("no answer from rank 1")):
        run_ranks(work, 3, seconds=4)


def test_a_time_limit_ends_all_and_names_who_was_not_ready():
    def work():
        if dist.get_rank() == 1:
            time.sleep(60)

    with pytest.raises(RuntimeError, match=said("rank 1 of 2", "result in 3 s")):
        run_ranks(work, 2, seconds=3)
    assert not multiprocessing.active_children()


@pytest.fixture
def interruptible():
    """A shell that starts the tests in the background lets them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_ends_all(interruptible):
    def work():
        dist.barrier()  # now all are at work
        if dist.get_rank() == 0:
            os.kill(os.getppid(), signal.SIGINT)
        threading.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        run_ranks(work, 2, seconds=LONG)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("ranks", [0, -1, 1.5])
def test_a_number_of_ranks_that_is_none_is_refused(ranks, as_importer):
    with pytest.raises(ValueError, match=said("ranks", "whole number", "got", ranks)):
        run_ranks(own_rank, ranks)


@pytest.mark.parametrize("wrong", [math.inf, math.nan, 1e7, 0, -1, None, "5", 10**30])
def test_a_time_limit_is_a_number_of_seconds_that_can_be_waited(wrong, as_importer):
    words = said("seconds", "above 0", "got", repr(wrong))
    with pytest.raises(ValueError, match=words):
        run_ranks(own_rank, 2, seconds=wrong)


def test_a_time_limit_may_be_long_and_no_whole_number():
    assert run_ranks(own_rank, 2, seconds=1e6) == run_ranks(own_rank, 2, seconds=9.5)


def test_what_cannot_be_called_is_refused(as_importer):
    with pytest.raises(ValueError, match=said("function", "callable", "got")):
        run_ranks("own_rank", 2)


def test_alone_there_is_one_rank():
    assert place_in(None) == (0, 1)


def test_alone_what_is_exchanged_comes_back():
    given = torch.ones(2, 3)
    ((found,),) = exchange([[given]], [[(2, 3)]], None)()
    assert torch.equal(found, given)


def test_a_group_is_a_group_that_this_process_belongs_to(as_importer):
    with pytest.raises(ValueError, match=said("group", "belongs to", "got", "'all'")):
        place_in("all")

    def other():
        group = dist.new_group([0])
        if dist.get_rank() == 1:
            with pytest.raises(ValueError, match=said("group", "belongs to")):
                place_in(group)
        return "refused"

    assert run_ranks(other, 2) == ["refused"] * 2


def test_what_is_exchanged_arrives_in_the_order_in_which_it_was_asked_for():
    def work():
        rank = dist.get_rank()

        def ask(turn):
            one = 100.0 * turn + 10 * rank
            given = [[torch.full((2, peer + 1), one + peer)] for peer in range(3)]
            return exchange(given, [[(2, rank + 1)]] * 3, None)

        first, second = ask(0), ask(1)  # both are under way before any is waited for
        for turn, arrive in ((1, second), (0, first)):
            for source, (tensor,) in enumerate(arrive()):
                assert (tensor == 100 * turn + 10 * source + rank).all()
        return "arrived"

    assert run_ranks(work, 3) == ["arrived"] * 3


def test_each_takes_what_all_have_and_lengths_may_differ():
    def work():
        rank = dist.get_rank()
        own = torch.full((2, rank + 1), rank == 1)
        parts = from_all(own, 1, [1, 2, 3], None)
        return parts[rank] is own, [(p.shape[1], p.all().item()) for p in parts]

    must = [(1, False), (2, True), (3, False)]
    assert run_ranks(work, 3) == [(True, must)] * 3


@pytest.mark.parametrize("long", [5_000 * "a", 3_000 * "é"])
def test_facts_longer_than_a_letter_are_refused_on_every_rank(long):
    def told():
        try:
            agree(lambda: {"name": long if dist.get_rank() else ""}, None)
        except ValueError as error:
            return str(error)

    first, second = run_ranks(told, 2)
    assert first == second
    assert first.startswith("on rank 1 of 2: expected facts of at most 4096 bytes, got")


def test_facts_that_cannot_be_written_are_refused_on_every_rank_and_the_next_agree():
    def work(odd):
        said = []
        for fact in (odd if dist.get_rank() else 1, 1):
            try:
                said.append(agree(lambda fact=fact: {"size": fact}, None))
            except ValueError as error:
                said.append(str(error))
        return said

    for odd in (object(), torch.ones(2), 1j, numpy.longdouble(1)):
        told = f"facts: expected words and numbers, got {type(odd).__name__}"
        (first, *then), (second, *later) = run_ranks(work, 2, odd)
        assert (first, second) == (f"on rank 1 of 2: {told}", told)
        assert then == later == [[{"size": 1}] * 2]


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        (numpy.float32(0.5), 0.5),
        (numpy.int64(3), 3),
        (numpy.bool_(True), True),
        (torch.tensor(True), True),
        (torch.tensor(0.5), 0.5),
    ],
    ids=repr,
)
def test_numbers_of_numpy_and_tensors_are_told_as_pythons_own(odd, plain):
    def work():
        return agree(lambda: {"number": odd if dist.get_rank() else plain}, None)

    assert run_ranks(work, 2) == [[{"number": plain}] * 2] * 2


def test_words_that_cannot_be_encoded_are_told_too():
    def work():
        def facts():
            if dist.get_rank() == 1:
                raise ValueError("no \ud800")
            return {}

        try:
            agree(facts, None)
        except ValueError as error:
            return str(error)

    assert run_ranks(work, 2)[0] == "on rank 1 of 2: no ?"


def test_a_long_refusal_is_told_to_every_rank():
    def told():
        def facts():
            if dist.get_rank():
                raise ValueError(2_000 * "é")
            return {}

        try:
            agree(facts, None)
        except ValueError as error:
            return str(error)[:20]

    assert run_ranks(told, 2) == ["on rank 1 of 2: éééé", 20 * "é"]


def test_facts_must_agree_on_every_rank_but_for_those_with_an_underscore():
    def work(name):
        try:
            told = agree(lambda: {name: dist.get_rank() // 2, "size": 3}, None)
        except ValueError as error:
            return str(error)
        return [each[name] for each in told]

    assert run_ranks(work, 3, "_place") == [[0, 0, 1]] * 3
    found = run_ranks(work, 3, "place")
    assert found == [found[0]] * 3
    assert found[0].startswith("place: expected the same on all ranks, got 0 on rank 0")


@pytest.mark.parametrize("kind", [ValueError, TypeError, AttributeError, RuntimeError])
def test_what_is_refused_on_one_rank_is_told_on_all(kind):
    def facts():
        if dist.get_rank() == 1:
            raise kind("width: expected 3, got 4")
        return {}

    def work():
        try:
            agree(facts, None)
        except (kind, ValueError) as error:
            return str(error)

    told = "width: expected 3, got 4"
    theirs = f"on rank 1 of 3: {told}"
    assert run_ranks(work, 3) == [theirs, told, theirs]


CALLS = {  # queries, keys, values, mask, bias
    "a batch": ((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), (2, 1, 5, 7), (3, 5, 7)),
    "fewer heads of keys": ((2, 6, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), (6, 5, 7), (7,)),
    "keys without a batch": ((2, 6, 5, 4), (3, 7, 4), (2, 3, 7, 6), (5, 7), (1, 1, 1)),
    "keys without heads": ((3, 5, 4), (7, 4), (7, 6), (3, 1, 7), (5, 1)),
    "queries without heads": ((5, 4), (3, 7, 4), (3, 7, 6), (7,), (3, 5, 7)),
    "neither": ((5, 4), (7, 4), (7, 6), (5, 7), (5, 7)),
}


@pytest.mark.parametrize("shapes", CALLS.values(), ids=CALLS.keys())
def test_a_call_that_is_fitted_gives_what_it_gave_with_as_many_axes_for_all(shapes):
    *three, mask, bias = (torch.randn(shape) for shape in shapes)
    mask = mask > -1
    options = {"causal": False, "scale": 0.3, "window": None, "documents": None}
    facts, call = fit_call(*three, mask, bias=bias, **options)
    context = attend(*call[:3], call.mask, bias=call.bias, scale=call.scale)
    must = attend(*three, mask, bias=bias, scale=0.3)
    torch.testing.assert_close(context.reshape(must.shape), must)
    assert call.shape == must.shape[:-1]
    assert {each.ndim for each in call[:5]} == {max(must.ndim, 3)}
    for name in ("mask", "bias"):
        sizes = list(getattr(call, name).shape[:-2])
        assert facts[f"sizes of {name}, rows and columns aside"] == sizes
    for name in ("queries", "keys", "values"):
        *axes, _, width = getattr(call, name).shape
        assert facts[f"sizes of {name} but for the length"] == [*axes, width]


@pytest.mark.parametrize("name", ["mask", "bias", "documents"])
def test_what_is_no_tensor_is_not_fitted(name, as_importer):
    options = {"causal": False, "scale": None, "window": None}
    tables = dict.fromkeys(["mask", "bias", "documents"]) | {name: [True] * 7}
    with pytest.raises(TypeError, match=said(name, "Tensor", "got", "list")):
        fit_call(*torch.randn(3, 2, 3, 7, 11), **tables, **options)


def test_random_programs_of_exchanges_end():
    def work(seed):
        chance, rank = random.Random(seed), dist.get_rank()
        groups = {
            (first, last): dist.new_group(list(range(first, last)))
            for first in range(4)
            for last in range(first + 1, 5)
        }
        pending = []
        for _ in range(200):
            first, last = chance.choice(sorted(groups))
            shift, size = chance.randrange(4), chance.randrange(3)
            delayed = chance.random() < 0.5
            if not first <= rank < last:
                continue
            group, ranks = groups[first, last], last - first
            there, here = (rank - first + shift) % ranks, (rank - first - shift) % ranks
            buffer = torch.zeros(size)
            sent = torch.full((size,), 1.0 + rank)
            done = post({there: [sent]}, {here: [buffer]}, group)
            pending.append((done, buffer, 1.0 + first + here, there != rank - first))
            while pending and not delayed:
                done, buffer, must, moved = pending.pop(0)
                done()
                assert not moved or (buffer == must).all()
        for done, *_ in pending:
            done()
        return "ended"

    assert run_ranks(work, 4, 1) == ["ended"] * 4


def test_a_rank_that_is_done_at_once_does_not_leave_others_still_joining():
    for _ in range(10):
        assert run_ranks(dist.get_rank, 4) == [0, 1, 2, 3]

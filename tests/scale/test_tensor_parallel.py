"""A layer cut by heads over several ranks gives what one device gives."""

import copy
import re
from functools import cache, partial

import pytest
import torch
import torch._dynamo  # which distributed tensors load, once and not in each process
import torch.distributed as dist
from examples import said
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import SequenceParallel, parallelize_module
from torch.nn.functional import linear
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from attention import (
    Attention,
    KVCache,
    MultiHeadAttention,
    ProcessHeads,
    QKNorm,
    RelativeBias,
    Rotary,
    alibi,
    parallelize_attention,
    run_ranks,
    window,
)
from attention.core.layer import causal

D_IN, D_OUT, HEADS, WIDTH, LENGTH = 10, 14, 12, 6, 7


def grouped(kv_heads, **options):
    steps = ProcessHeads(QKNorm(WIDTH), Rotary(WIDTH))
    options |= {"num_kv_heads": kv_heads, "head_dim": WIDTH, "process_heads": steps}
    return Attention(D_IN, D_OUT, HEADS, qkv_bias=True, **options)


def plain(**options):
    return Attention(D_IN, D_OUT, HEADS, head_dim=WIDTH, **options)


def for_each_sentence(query_positions, key_positions):
    """A bias without an axis of heads, for as many sentences as there are heads."""
    distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
    return torch.arange(HEADS)[:, None, None] * distance / 10.0


def one_for_both(kv_heads):
    layer = plain(num_kv_heads=kv_heads)
    layer.W_value = layer.W_key
    return layer


LAYERS = {
    **{f"keys are values: {n}": partial(one_for_both, n) for n in (12, 1)},
    **{f"key heads: {n}": partial(grouped, n) for n in (12, 4, 2, 1)},
    "no bias": partial(plain, out_bias=False),
    "ALiBi": lambda: plain(bias=alibi(HEADS)),
    "T5's bias": lambda: plain(bias=RelativeBias(HEADS), masks=(causal, window(3))),
    "a bias for each sentence": lambda: plain(bias=for_each_sentence),
    "multi-head": lambda: MultiHeadAttention(D_IN, 24, LENGTH, 0.0, HEADS, True),
}


def in_a_row():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def both(make, dtype=torch.float64):
    """The whole layer, and one that is cut: only the first rank has its weights."""
    torch.manual_seed(3)
    whole = make().to(dtype)
    for parameter in whole.parameters():
        nn.init.normal_(parameter, std=0.5)
    cut = copy.deepcopy(whole)
    if dist.get_rank():
        for parameter in cut.parameters():
            nn.init.zeros_(parameter)
    return whole, parallelize_attention(cut, in_a_row())


def own_part(tensor, like):
    """What this rank has of a tensor that is placed like another."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements).to_local()


def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shapes_of(name):
    if name == "a bias for each sentence":
        return (HEADS, LENGTH, D_IN), torch.arange(LENGTH).expand(HEADS, LENGTH)
    return (2, LENGTH, D_IN), None


# Equal to one device


def differences(name, masked):
    """How far context, input's gradient and own parts of weights' gradients are."""
    layers, (shape, positions) = both(LAYERS[name]), shapes_of(name)
    x, found = torch.randn(shape, dtype=torch.float64), []
    mask = torch.rand(HEADS, LENGTH, LENGTH) < 0.7 if masked else None
    given = {} if positions is None else {"positions": positions}
    for layer in layers:
        own = x.clone().requires_grad_()
        context = layer(own, mask, **given)
        assert type(context) is torch.Tensor
        torch.manual_seed(5)
        context.backward(torch.randn_like(context))
        found.append([context, own.grad])
    for one, ours in zip(*(layer.parameters() for layer in layers), strict=True):
        found[0].append(own_part(one.grad, like=ours))
        found[1].append(local(ours.grad))
        if isinstance(ours, DTensor):
            assert ours.grad.placements == ours.placements
    return max((a - b).abs().max().item() for a, b in zip(*found, strict=True))


@cache
def all_differences(ranks):
    def work():
        return {name: differences(name, masked=ranks == 2) for name in LAYERS}

    return run_ranks(work, ranks, seconds=300)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_context_and_gradients_are_those_of_one_device(ranks, name):
    for found in all_differences(ranks):  # on two with a mask for each head
        assert found[name] < 1e-12


MASKS = {  # with heads of their own, and for all of them
    "of the heads": (HEADS, LENGTH, LENGTH),
    "of heads and sentences": (2, HEADS, LENGTH, LENGTH),
    "of sentences": (2, 1, LENGTH, LENGTH),
    "of the keys": (LENGTH,),
    "of queries and keys": (LENGTH, LENGTH),
}


def test_a_mask_has_heads_of_its_own_or_is_one_for_all():
    def work():
        whole, cut = both(LAYERS["key heads: 4"])
        x = torch.randn(2, LENGTH, D_IN, dtype=torch.float64)
        masks = {name: torch.rand(shape) < 0.7 for name, shape in MASKS.items()}
        return {
            name: (cut(x, mask) - whole(x, mask)).abs().max().item() < 1e-12
            for name, mask in masks.items()
        }

    assert run_ranks(work, 2) == [dict.fromkeys(MASKS, True)] * 2


def test_a_rank_holds_its_part_of_the_weights():
    def work():
        _, cut = both(LAYERS["key heads: 4"])
        weights = cut.W_query.weight, cut.W_key.weight, cut.out_proj.weight
        return [tuple(weight.to_local().shape) for weight in weights]

    rows = HEADS * WIDTH // 2
    assert run_ranks(work, 2) == [[(rows, D_IN), (2 * WIDTH, D_IN), (D_OUT, rows)]] * 2


def test_a_rank_sees_what_its_own_heads_see():
    def work(name):
        whole, cut = both(LAYERS[name])
        x = torch.randn(2, LENGTH, D_IN, dtype=torch.float64)
        own = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3)
        weights = cut.attention_weights(x)
        torch.testing.assert_close(weights, whole.attention_weights(x)[:, own])
        return cut.num_heads, getattr(cut, "num_kv_heads", None)

    assert run_ranks(work, 4, "key heads: 2") == [(3, 1)] * 4
    assert run_ranks(work, 4, "multi-head") == [(3, None)] * 4


def test_a_text_is_read_token_by_token_with_a_cache_of_own_heads():
    @torch.inference_mode()
    def held(kv_heads):
        layers = both(LAYERS[f"key heads: {kv_heads}"])
        caches, heads = (KVCache(), KVCache()), layers[1].num_kv_heads
        for token in torch.randn(LENGTH, 2, 1, D_IN, dtype=torch.float64):
            pairs = zip(layers, caches, strict=True)
            one, ours = (layer(token, cache=cache) for layer, cache in pairs)
            torch.testing.assert_close(ours, one)
        empty = torch.empty(2, heads, 0, WIDTH, dtype=torch.float64)
        keys, _, _ = caches[1].extend(empty, empty, torch.empty(0).long())
        return tuple(keys.shape)

    def work():
        return [held(kv_heads) for kv_heads in (4, 2, 1)]

    wanted = [(2, heads, LENGTH, WIDTH) for heads in (2, 1, 1)]
    assert run_ranks(work, 2) == [wanted, wanted]


def test_a_text_may_come_without_a_batch_and_in_16_bits():
    def work():
        whole, cut = both(LAYERS["key heads: 1"], torch.float32)
        x = torch.randn(LENGTH, D_IN)
        torch.testing.assert_close(cut(x=x, mask=None), whole(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert cut(x).dtype == torch.bfloat16
            torch.testing.assert_close(cut(x), whole(x), rtol=0.05, atol=0.05)
        return True

    assert run_ranks(work, 2) == [True, True]


# Weights in the slots


def test_a_table_that_layers_share_gets_its_gradient_once():
    def work():
        table = RelativeBias(HEADS)
        nn.init.normal_(table.table.weight)
        layers = [plain(bias=table) for _ in range(2)]
        twins = copy.deepcopy(layers)
        cut = [parallelize_attention(layer, in_a_row()) for layer in layers]
        for each in (cut, twins):
            torch.manual_seed(5)
            x = torch.randn(LENGTH, D_IN)
            sum(layer(x).square().sum() for layer in each).backward()
        wanted = twins[0].bias.table.weight.grad
        torch.testing.assert_close(
            table.table.weight.grad, wanted, rtol=1e-4, atol=1e-4
        )
        return True

    torch.manual_seed(3)
    assert run_ranks(work, 2) == [True, True]


def test_what_is_not_trained_stays_as_it_is():
    def work():
        layer = grouped(1).requires_grad_(False)
        layer.out_proj.requires_grad_()
        parallelize_attention(layer, in_a_row())(torch.randn(3, D_IN)).sum().backward()
        return [
            name for name, each in layer.named_parameters() if each.grad is not None
        ]

    assert run_ranks(work, 2) == [["out_proj.weight", "out_proj.bias"]] * 2


# Checkpoints


def test_a_checkpoint_of_the_whole_goes_in_and_after_a_step_comes_out():
    def work():
        torch.manual_seed(3)
        whole, cut = grouped(1), parallelize_attention(grouped(1), in_a_row())
        full = StateDictOptions(full_state_dict=True)
        set_model_state_dict(cut, whole.state_dict(), options=full)
        x = torch.randn(2, LENGTH, D_IN)
        for layer in (whole, cut):
            optimiser = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                optimiser.zero_grad()
                layer(x).square().mean().backward()
                optimiser.step()
        saved = get_model_state_dict(cut, options=full)
        assert list(saved) == list(whole.state_dict())
        torch.testing.assert_close(saved, dict(whole.state_dict()))
        return True

    assert run_ranks(work, 2) == [True, True]


# What is sent


class Sent(TorchDispatchMode):
    """The collective calls within, and the bytes that each was given."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented
        name = function.overloadpacket.__name__
        if name.startswith(("all_", "reduce_scatter", "broadcast", "scatter")):
            self.calls.append((name, args[0].nbytes))
        return function(*args, **(kwargs or {}))


def test_one_all_reduce_goes_forward_and_one_back():
    def work():
        _, cut = both(LAYERS["multi-head"], torch.float32)
        x = torch.randn(2, LENGTH, D_IN).requires_grad_()
        with Sent() as forward:
            context = cut(x)
        with Sent() as back:
            context.sum().backward()
        return forward.calls, back.calls

    forward, back = [4 * 2 * LENGTH * width for width in (24, D_IN)]
    calls = [("all_reduce", forward)], [("all_reduce", back)]
    assert run_ranks(work, 2) == [calls] * 2


# Sequence parallel


@pytest.mark.parametrize(("ranks", "length"), [(2, 8), (2, 7), (4, 7)])
def test_tokens_that_come_cut_go_out_cut(ranks, length):
    if length % ranks and torch.__version__ < (2, 7):
        pytest.skip("its linear layer takes only what is cut evenly")

    def work():
        mesh, dtype = in_a_row(), torch.float64
        whole, cut = both(lambda: grouped(2))
        norm = nn.LayerNorm(D_IN, dtype=dtype)
        nn.init.normal_(norm.weight)
        ours = parallelize_module(copy.deepcopy(norm), mesh, SequenceParallel())
        x = torch.randn(2, length, D_IN, dtype=dtype)
        do = torch.randn(2, length, D_OUT, dtype=dtype)
        own = distribute_tensor(x, mesh, [Shard(1)]).requires_grad_()
        x.requires_grad_()
        with Sent() as sent:
            context = cut(ours(own))
        one = whole(norm(x))
        assert context.placements == (Shard(1),)
        torch.testing.assert_close(context.full_tensor(), one)
        context.backward(distribute_tensor(do, mesh, [Shard(1)]))
        one.backward(do)
        assert own.grad.placements == (Shard(1),)
        torch.testing.assert_close(own.grad.full_tensor(), x.grad)
        torch.testing.assert_close(ours.weight.grad.full_tensor(), norm.weight.grad)
        torch.testing.assert_close(
            cut.W_key.weight.grad.full_tensor(), whole.W_key.weight.grad
        )
        return [name for name, _ in sent.calls]

    calls = ["all_gather_into_tensor", "reduce_scatter_tensor"]
    assert run_ranks(work, ranks) == [calls] * ranks


def test_what_is_whole_as_a_distributed_tensor_stays_one():
    def work():
        whole, cut = both(LAYERS["no bias"])
        x = torch.randn(2, LENGTH, D_IN, dtype=torch.float64)
        context = cut(distribute_tensor(x, in_a_row(), [Replicate()]))
        assert context.placements == (Replicate(),)
        torch.testing.assert_close(context.to_local(), whole(x))
        return True

    assert run_ranks(work, 2) == [True, True]


# Refused


def refusal(layer, mesh):
    """What the caller is told, if the layer is as it was."""
    before = dict(vars(layer))
    with pytest.raises(ValueError, match="expected") as caught:
        parallelize_attention(layer, mesh)
    assert vars(layer) == before
    return str(caught.value)


class Adapted(nn.Module):
    """A linear layer inside another module."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def with_query(change, *options, **more):
    layer = Attention(8, 8, 4)
    change(layer.W_query, *options, **more)
    return layer


def test_a_layer_that_cannot_be_cut_is_refused_on_every_rank(as_importer):
    def work():
        mesh, adapted = in_a_row(), Attention(8, 8, 4)
        square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("text", "heads"))
        adapted.W_key = Adapted(adapted.W_key)
        other = Attention(8, 8, 4, qkv_bias=dist.get_rank() == 3)
        tied = Attention(8, 8, 4)
        tied.W_key.weight = tied.W_query.weight
        cut = parallelize_attention(Attention(8, 8, 4), mesh)
        of_two = parallelize_attention(Attention(8, 8, 2), square["heads"])
        assert of_two.num_heads == 1
        return [
            refusal(Attention(6, 6, 6), mesh),
            refusal(Attention(6, 12, 12, num_kv_heads=3), mesh),
            refusal(Attention(8, 8, 4), square),
            refusal(cut, mesh),
            refusal(nn.Linear(8, 8), mesh),
            refusal(adapted, mesh),
            refusal(other, mesh),
            refusal(with_query(parametrizations.weight_norm), mesh),
            refusal(with_query(parametrizations.orthogonal), mesh),
            refusal(with_query(prune.random_unstructured, "weight", amount=1), mesh),
            refusal(tied, mesh),
        ]

    wanted = [
        ("queries", "4 ranks can share", "got 6"),
        ("keys and values", "4 ranks divide", "got 3"),
        ("mesh", "one dimension", "got (2, 2)"),
        ("layer", "whole", "cut before"),
        ("layer", "Attention", "MultiHeadAttention", "got Linear"),
        ("layer.W_key", "nn.Linear", "got Adapted"),
        ("W_query.bias", "same on all ranks", "None on rank 0", "[8] on rank 3"),
        ("layer.W_query", "of its own", "got parametrizations.weight.original0"),
        ("layer.W_query", "of its own", "got parametrizations.weight.original"),
        ("layer.W_query", "of its own", "got weight_orig"),
        ("layer.W_key", "of its own", "got shared ones"),
    ]
    for told in run_ranks(work, 4):
        for line, fields in zip(told, wanted, strict=True):
            assert re.search(said(*fields), line)


def test_what_the_layer_refuses_is_still_refused(as_importer):
    def work():
        _, cut = both(LAYERS["no bias"], torch.float32)
        told = []
        for call in (
            lambda: cut([1.0]),
            lambda: cut(torch.randn(2, LENGTH, 3)),
            lambda: cut(torch.randn(LENGTH, D_IN), torch.ones(5, 3, 3).bool()),
            lambda: cut(torch.randn(LENGTH, D_IN).double()),
        ):
            with pytest.raises((TypeError, ValueError), match="expected") as caught:
                call()
            told.append(str(caught.value).partition(":")[0])
        return told

    assert run_ranks(work, 2) == [["x", "x", "mask", "x"]] * 2


# By hand


def test_parts_of_the_output_projection_add_up_and_the_bias_comes_once():
    torch.manual_seed(0)
    context, weight, bias = torch.randn(1, 4), torch.randn(3, 4), torch.randn(3)
    parts = [context[:, own] @ weight[:, own].T for own in (slice(0, 2), slice(2, 4))]
    whole = sum(parts) + bias
    golden = [
        [-1.2609, -0.9900, -1.6431],
        [-0.4024, 1.4034, 2.4036],
        [-2.2296, 0.7865, -0.1314],
    ]
    found = torch.cat([*parts, whole])
    torch.testing.assert_close(found, torch.tensor(golden), rtol=0, atol=6e-5)
    torch.testing.assert_close(whole, linear(context, weight, bias))

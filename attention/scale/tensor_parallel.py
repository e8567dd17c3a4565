"""Tensor parallelism

Each machine holds some heads of a layer, with their weights and their cache; one
sum over the machines turns their parts into what a single device gives.

Written by `book/scale/tensor_parallel.ipynb`: read and change it there.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from attention.core.layer import Attention
from attention.core.multi_head import MultiHeadAttention
from attention.scale.context_parallel import heads_of
from attention.tools.ranks import agree, place_in
from attention.tools.workbench import expected

__all__ = ["parallelize_attention"]


def parallelize_attention(
    layer: Attention | MultiHeadAttention, mesh: DeviceMesh
) -> Attention | MultiHeadAttention:
    """Cut `layer` over the ranks of `mesh`, in place: each keeps some of the heads.

    Every rank calls it with its copy of the layer; the weights of the first rank are
    taken. Then every rank calls the layer with the same x and gets what the whole layer
    gives, forward and backward; a cache holds the rank's own heads. If x is a DTensor
    cut along its tokens, so is the context. `attention_weights` gives the rank's own
    heads. If there are fewer key heads than ranks, every rank holds all of them.

    ValueError, on every rank, for heads that the ranks cannot share, a mesh of several
    dimensions and a layer that was cut before. Shoeybi et al. 2019, section 3.
    """
    own, own_kv = _shares(layer, mesh)
    heads = layer.num_heads
    trained = {name: w.requires_grad for name, w in layer.named_parameters()}
    _cut_projections(layer, mesh, own_kv)
    for name, weight in layer.named_parameters():  # PyTorch 2.6 would train them all
        weight.requires_grad_(trained[name])
    _keep_equal(layer, mesh)
    layer.num_heads = own.stop - own.start
    if hasattr(layer, "num_kv_heads"):
        layer.num_kv_heads = own_kv.stop - own_kv.start
    if getattr(layer, "bias", None) is not None:
        layer.bias = _of_own_heads(layer.bias, own, heads)
    around = {"mesh": mesh, "own": own, "heads": heads}
    layer.forward = partial(_entered, layer.forward, **around)
    layer.attention_weights = partial(_entered, layer.attention_weights, **around)
    return layer


_LINEAR = ("W_query", "W_key", "W_value", "out_proj")


def _shares(layer: nn.Module, mesh: DeviceMesh) -> list[slice]:
    """This rank's heads of queries, and of keys; ValueError if there is a misfit."""
    if not isinstance(mesh, DeviceMesh) or mesh.ndim != 1:
        got = getattr(mesh, "shape", mesh)
        raise expected("mesh", "a DeviceMesh of one dimension", got)
    group, shares = mesh.get_group(), []
    rank, ranks = place_in(group)

    def facts():
        _check_whole(layer)
        kv_heads = getattr(layer, "num_kv_heads", layer.num_heads)
        for some in (layer.num_heads, kv_heads):
            shares.append(heads_of(rank, ranks, layer.num_heads, some))
        weights = {name: list(each.shape) for name, each in layer.named_parameters()}
        return {"heads": [layer.num_heads, kv_heads]} | weights

    agree(facts, group)
    return shares


def _check_whole(layer: nn.Module) -> None:
    if not isinstance(layer, Attention | MultiHeadAttention):
        must = "an Attention or a MultiHeadAttention"
        raise expected("layer", must, type(layer).__name__)
    for name in _LINEAR:
        part = getattr(layer, name)
        if not isinstance(part, nn.Linear):
            raise expected(f"layer.{name}", "an nn.Linear", type(part).__name__)
        if hasattr(part.weight, "placements"):
            raise expected("layer", "one that is whole", "one that was cut before")
    _check_own(layer)


def _check_own(layer: nn.Module) -> None:
    """ValueError for weights that are made of others, or belong to two layers."""
    found = {}
    for name in _LINEAR:
        part = getattr(layer, name)
        made = {each for each, _ in part.named_parameters()} - {"weight", "bias"}
        if made:
            must = "a weight and a bias of its own, and no parametrization"
            raise expected(f"layer.{name}", must, ", ".join(sorted(made)))
        for weight in part.parameters():
            if found.setdefault(weight, part) is not part:
                raise expected(f"layer.{name}", "weights of its own", "shared ones")


def _cut_projections(layer: nn.Module, mesh: DeviceMesh, own_kv: slice) -> None:
    """Make distributed tensors of the weights of the four linear layers."""
    from torch.distributed.tensor import Partial, distribute_module, parallel

    class Rowwise(parallel.RowwiseParallel):
        @staticmethod
        def _prepare_output_fn(_, __, linear, output, mesh):
            return output  # a sum over the ranks, or whole: `_entered` places it

    columns, width = parallel.ColwiseParallel(), layer.head_dim
    plan = {"W_query": columns, "out_proj": Rowwise()}
    enough = layer.W_key.out_features >= mesh.size() * width
    if enough:
        plan |= {"W_key": columns, "W_value": columns}
    names = {getattr(layer, name): name for name in reversed(plan)}  # two may be one
    parallel.parallelize_module(layer, mesh, {n: plan[n] for n in names.values()})
    if enough:
        return

    def kept(_, heads, __):
        heads = heads.to_local(grad_placements=[Partial()])
        return heads[..., own_kv.start * width : own_kv.stop * width]

    for shared in dict.fromkeys((layer.W_key, layer.W_value)):  # in one order
        distribute_module(shared, mesh, output_fn=kept)


def _keep_equal(layer: nn.Module, mesh: DeviceMesh) -> None:
    """Weights that all ranks hold start equal, and get the sum of all gradients."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_tensor

    whole = [Replicate()]
    for name, weight in layer.named_parameters():
        cut = list(getattr(weight, "placements", whole)) != whole
        if cut or name == "out_proj.bias" or hasattr(weight, "_summed"):
            continue
        if not isinstance(weight, DTensor):
            first = distribute_tensor(weight.detach(), mesh, whole)
            weight.data.copy_(first.to_local())
        if weight.requires_grad:
            weight._summed = weight.register_hook(partial(_sum, mesh))


def _sum(mesh: DeviceMesh, gradient: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, Partial, Replicate

    if isinstance(gradient, DTensor):
        return gradient.redistribute(placements=[Replicate()])
    return DTensor.from_local(gradient, mesh, [Partial()]).full_tensor()


def _own(table: object, own: slice, heads: int) -> object:
    """The table's part for these heads, if it has an axis of heads."""
    several = isinstance(table, Tensor) and table.ndim > 2 and table.shape[-3] == heads
    return table[..., own, :, :] if several else table


def _of_own_heads(bias: Callable, own: slice, heads: int) -> Callable:
    """A bias for these heads alone, if it has an axis of heads."""

    def part(table: object, positions: tuple) -> object:
        rows = max(each.ndim for each in positions) - 1
        has_heads = isinstance(table, Tensor) and table.ndim == rows + 3
        return _own(table, own, heads) if has_heads else table

    if isinstance(bias, nn.Module):  # it stays in its place, for its weights
        bias.register_forward_hook(lambda _, positions, table: part(table, positions))
        return bias
    return lambda *positions: part(bias(*positions), positions)


def _entered(call, x, mask=None, *, mesh, own, heads, **options) -> Tensor:
    """What `call` gives for all of x and these heads; placed like x if it is a sum."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(x, Tensor):
        return call(x, mask, **options)  # the layer refuses it
    given = x if isinstance(x, DTensor) else DTensor.from_local(x, mesh, [Replicate()])
    whole = given.redistribute(placements=[Replicate()])
    found = call(whole, _own(mask, own, heads), **options)
    if not isinstance(found, DTensor):
        return found  # weights, of these heads
    found = found.redistribute(placements=given.placements)
    return found if given is x else found.to_local()

"""Where the time goes

Operations and bytes of each step of attention, counted, checked, and compared with
what this machine can do: three quarters of the bytes belong to steps that compute
little.

Written by `book/speed/cost.ipynb`: read and change it there.
"""

import weakref
from collections import Counter

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention.tools.checks import check_sizes

__all__ = ["Ledger", "attention_cost"]


def attention_cost(
    length: int, head_dim: int, itemsize: int = 4
) -> dict[str, tuple[int, int]]:
    """Operations and bytes moved by each step of attention by hand, for one head.

    Each step reads its inputs once and writes its output once, in numbers of `itemsize`
    bytes; a boolean takes one. Multiply by batch and heads. ValueError for a size
    below 1.
    """
    length, head_dim = check_sizes(length=length, head_dim=head_dim)
    (itemsize,) = check_sizes(itemsize=itemsize)
    table, rows = length**2, length * head_dim
    return {
        "scores": (2 * table * head_dim, itemsize * (2 * rows + table)),
        "scale": (table, itemsize * 2 * table),
        "mask": (0, itemsize * 2 * table + table),
        "softmax": (5 * table, itemsize * 2 * table),
        "average": (2 * table * head_dim, itemsize * (table + 2 * rows)),
    }


class Ledger(TorchDispatchMode):
    """Bytes that the calls in a `with` block move and hold.

    `moved` has, by function, the bytes of its inputs and outputs; `peak` is the most
    that the block's own tensors held at once. Space that a call takes for itself and
    gives back is not seen. Use a new ledger for each block.
    """

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.held, self.peak = Counter(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = _tensors((args, kwargs))
        result = function(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in given}
        new = {
            storage.data_ptr(): storage
            for storage in map(Tensor.untyped_storage, _tensors(result))
            if storage.data_ptr() not in known
        }
        if new or function._schema.is_mutable:  # everything else is a view
            name = function.overloadpacket.__name__
            self.moved[name] += sum(t.nbytes for t in given + _tensors(result))
        for storage in new.values():
            self._hold(storage.nbytes())
            weakref.finalize(storage, self._hold, -storage.nbytes())
        return result

    def _hold(self, nbytes: int) -> None:
        self.held += nbytes
        self.peak = max(self.peak, self.held)


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]

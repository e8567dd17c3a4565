"""Properties: compiled or exported, a mechanism gives the same numbers."""

from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.export import Dim, export
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from attention import attend, attention_weights

from .cases import Case, takes_mask
from .equals import equal
from .mechanism import Excuse, Mechanism, Sizes
from .suite import sentence

SIZES = Sizes(heads=2, head_dim=13, d_in=11, d_context=17, d_value=19)
ALONE = {"alone": True, "fixed": SIZES, "least": 2, "dtypes": (torch.float32,)}
BACKEND = "aot_eager"  # traces as "inductor" does, and needs no C++ compiler


class Called(nn.Module):
    """A function as a module, for what takes modules only."""

    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, *tensors, mask=None):
        return self.f(*tensors, **({} if mask is None else {"mask": mask}))


def some(mechanism: Mechanism, **sizes) -> Case:
    """A case in which every size that may change is another one."""
    keys = 5 if len(mechanism.reads) == 1 else 7
    sizes = replace(
        mechanism.fits(SIZES), lead=(3,), **{"queries": 5, "keys": keys} | sizes
    )
    case = Case(mechanism, sizes, torch.float32, seed=0)
    if takes_mask(mechanism):
        case.mask = torch.ones(mechanism.masks(sizes), dtype=torch.bool)
    return case


@contextmanager
def said():
    """What PyTorch's tracers refuse is a property that fails."""
    try:
        yield
    except (TorchDynamoException, GuardOnDataDependentSymNode) as error:
        raise AssertionError(str(error)) from None


@lru_cache
def compiled(mechanism: Mechanism):
    """Weights and sizes that stay; what is compiled serves all lengths and batches."""
    torch.compiler.reset()
    f = Called(some(mechanism, queries=7).make())
    fast = torch.compile(f, fullgraph=True, dynamic=True, backend=BACKEND)
    for mask in {None, some(mechanism).mask}:
        some(mechanism).call(fast, mask=mask)
    return f, fast


@sentence("torch.compile(fullgraph=True) gives the same numbers", **ALONE)
def compiles(case):
    with said():
        f, fast = compiled(case.mechanism)
        equal(case.call(fast), case.call(f))


@lru_cache
def exported(mechanism: Mechanism):
    case = some(mechanism)
    f, tensors = Called(some(mechanism, queries=7).make()), case.tensors()
    moves, mask = {0: Dim.AUTO, 1: Dim.AUTO}, case.mask
    shapes = {"tensors": tuple(moves for _ in tensors)}
    options = {} if mask is None else {"mask": mask}
    if mask is not None:
        shapes["mask"] = {0: Dim.AUTO, mask.ndim - 2: Dim.AUTO, mask.ndim - 1: Dim.AUTO}
    program = export(f, tuple(tensors), options, dynamic_shapes=shapes)
    return f, program.module()


def fixes_a_length(mechanism):
    """Before torch 2.8, comparing two lengths makes one of them a constant."""
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 8)
    hidden = mechanism.covers not in (attend, attention_weights)  # in an operator
    if old and not hidden and mechanism.causal and len(mechanism.reads) == 3:
        return Excuse("this torch exports one length of the two", "fails")


@sentence(
    "torch.export gives the same numbers", excuse=fixes_a_length, masks="some", **ALONE
)
def exports(case):
    with said():
        f, program = exported(case.mechanism)
        equal(case.call(program), case.call(f))

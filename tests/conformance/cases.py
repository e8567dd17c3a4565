"""Sizes, masks, dtypes and numbers of an example, drawn by Hypothesis."""

from dataclasses import dataclass, replace
from inspect import isclass

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor, nn

from .mechanism import Mechanism, Sizes, accepts

EXACT = (torch.float32, torch.float64)
HALF = (torch.float16, torch.bfloat16)


@dataclass
class Case:
    """One example: what a mechanism is made and called with."""

    mechanism: Mechanism
    sizes: Sizes
    dtype: torch.dtype
    seed: int
    mask: Tensor | None = None

    def __post_init__(self):
        self.random = torch.Generator().manual_seed(self.seed)

    def make(self, dropout: float = 0.0, device: str = "cpu"):
        """The function, or a module that draws the same weights each time."""
        torch.manual_seed(self.seed)
        f = self.mechanism.make(self.sizes, dropout)
        return f.to(device, self.dtype) if isinstance(f, nn.Module) else f

    def tensors(self) -> list[Tensor]:
        """One for each input, the same ones each time."""
        random, sizes = torch.Generator().manual_seed(self.seed), self.sizes
        drawn = []
        for read in self.mechanism.reads:
            length = sizes.keys if read.holds == "keys" else sizes.queries
            lead = sizes.lead
            if sizes.shared and read.holds == "keys":
                lead = tuple(min(1, n) for n in lead)
            shape = (*lead, length, getattr(sizes, read.width))
            numbers = torch.randn(shape, generator=random, dtype=torch.float64)
            drawn.append(numbers.to(self.dtype))
        return drawn

    @property
    def options(self) -> dict[str, Tensor]:
        """The mask by its name, if there is one."""
        return {} if self.mask is None else {"mask": self.mask}

    def wired(self, f) -> list[Tensor]:
        """Queries, keys and values of the scores."""
        return self.mechanism.wiring(f, *self.tensors())

    def call(self, f, tensors=None, mask: Tensor | str | None = "its own"):
        """What comes out of `f`, made by `make`."""
        mask = self.mask if isinstance(mask, str) else mask
        options = {} if mask is None else {"mask": mask}
        return f(*(self.tensors() if tensors is None else tensors), **options)

    def allowed(self) -> Tensor:
        return self.mechanism.allowed(self.sizes, self.mask)

    def pick(self, high: int, low: int = 0) -> int:
        """A whole number from `low` to `high`, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.random))

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=self.dtype)


def takes_mask(mechanism: Mechanism) -> bool:
    """Does the public function or class, or its `forward`, take a mask?"""
    covers = mechanism.covers
    return accepts(covers.forward if isclass(covers) else covers, "mask")


def fitting(mechanism: Mechanism, sizes: Sizes, square: bool = False) -> Sizes:
    """The sizes that the mechanism says it takes, near those that were drawn."""
    sizes = mechanism.fits(sizes)
    if not square:
        return sizes
    width = sizes.head_dim * (sizes.heads if mechanism.heads else 1)
    return replace(sizes, d_in=width, d_context=width)


@st.composite
def cases(
    draw,
    mechanism: Mechanism,
    dtypes: tuple[torch.dtype, ...] = EXACT,
    masks: str = "any",  # "some", "seeing" (no blind row), "blind" (some), "none"
    square: bool = False,  # d_in = d_out, as PyTorch's own module wants
    edges: bool = False,  # odd sizes, d_in ≠ d_out, lengths of 1 and 0, a batch of 0
    least: int = 1,  # of lengths, and of batches
    most: int = 6,  # keys
    fixed: Sizes | None = None,  # all but one batch axis and the lengths
):
    """Examples for `mechanism`, small so that they are fast, of many shapes."""

    def size(high, low=1):
        return draw(st.integers(low, high))

    given = "values" in {read.name for read in mechanism.reads}
    together = any(read.holds == "both" for read in mechanism.reads)
    lengths = st.sampled_from((1, 3, 5, 0)) if edges else st.integers(least, 6)
    batches = st.sampled_from((3, 1, 0)) if edges else st.integers(least, 3)
    keys = draw(lengths) if most == 6 else size(most)
    queries = keys if together else draw(lengths)
    if mechanism.causal:
        queries = min(queries, keys)
    if fixed is None:
        head_dim = size(4)
        # PyTorch's fused kernels take two axes and one width, no other:
        fusable = given and draw(st.booleans())
        sizes = Sizes(
            heads=size(3),
            head_dim=head_dim,
            d_in=size(5),
            d_context=size(5),
            d_value=head_dim if fusable else size(5),
            qkv_bias=draw(st.booleans()),
            shared=given and size(4) == 1,
        )
        axes = draw(
            st.sampled_from((2,) if fusable else (1, 0, 2, 3)[: 4 if given else 3])
        )
        if edges:
            names = ("heads", "head_dim", "d_in", "d_context", "d_value")
            odd = {name: 2 * (getattr(sizes, name) // 2) + 1 for name in names}
            sizes = replace(sizes, **odd)
            assume(sizes.d_in not in (sizes.d_out, sizes.head_dim))
        sizes = fitting(mechanism, sizes, square)
    else:
        axes, sizes = 1, mechanism.fits(fixed)
    lead = tuple(draw(batches) for _ in range(axes))
    sizes = replace(sizes, lead=lead, queries=queries, keys=keys)
    dtypes = [dtype for dtype in dtypes if dtype in mechanism.dtypes]
    seed, dtype = draw(st.integers(0, 2**16)), draw(st.sampled_from(dtypes))
    case = Case(mechanism, sizes, dtype, seed)
    if takes_mask(mechanism) and masks != "none":
        case.mask = draw(mask_for(case, masks, full=fixed is not None))
    return case


@st.composite
def mask_for(draw, case: Case, masks: str, full: bool) -> Tensor | None:
    """A mask in any of the forms that broadcast, or none."""
    shape = case.mechanism.masks(case.sizes)
    kind = draw(st.sampled_from(("scattered", "padding", "none")))
    if kind == "none" and masks in ("any", "seeing"):
        return None
    if not full:
        kept = [draw(st.booleans()) for _ in shape]
        shape = tuple(
            n if keep else min(n, 1) for n, keep in zip(shape, kept, strict=True)
        )
        shape = shape[draw(st.integers(0, len(shape) - 1)) :]
    density = draw(st.sampled_from((0.5, 0.8, 0.2)))
    if kind == "padding":
        mask = torch.arange(shape[-1]) < draw(st.integers(0, case.sizes.keys))
        mask = mask.expand(shape).clone()
    else:
        mask = torch.rand(shape, generator=case.random) < density
    if masks == "seeing":
        mask[..., :1] = True
    if masks == "blind":
        row = case.pick(mask.shape[-2] - 1) if mask.ndim > 1 else ...
        mask[(..., row, slice(None)) if mask.ndim > 1 else ...] = False
    return mask

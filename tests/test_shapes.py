"""What the shape checks of a test run must notice, and what they let pass."""

from dataclasses import dataclass

import jaxtyping
import pytest
import shapes
import torch
from beartype import beartype
from jaxtyping import Float, Int
from torch import Tensor

from attention import attend, causal_mask

ROW, TABLE = torch.ones(3), torch.ones(2, 3)
checked = shapes.jaxtyped(typechecker=beartype)


@checked
def product(table: Float[Tensor, "i j"], row: Float[Tensor, " j"]):
    return table @ row


@checked
def doubled(row: Float[Tensor, " j"]) -> Float[Tensor, " 2*j"]:
    return row if row.sum() < 0 else torch.cat([row, row])


@checked
def either(row: Float[Tensor, " j"] | None, *others: Int[Tensor, " j"], **more: int):
    return row


@checked
def pair(rows: tuple[Float[Tensor, " j"], Float[Tensor, " j"]]):
    return rows


@checked
def repeated(row: Float[Tensor, " {times}"], times: int):
    return row


@checked
def later(row: "Float[Tensor, 'j j']"):
    return row


@checked
def counted(count: int) -> str:
    return count if count < 0 else str(count)


class Layer:
    @checked
    def forward(self, row: Float[Tensor, " j"]) -> Float[Tensor, " j"]:
        return row[1:] if row.sum() < 0 else row

    @staticmethod
    @checked
    def make(size: int) -> "Layer":
        return Layer() if size else size

    @property
    @checked
    def name(self) -> int:
        return "no number"


@checked
@dataclass
class Sizes:
    row: Float[Tensor, " j"]
    places: Int[Tensor, " j"]


def inside(row):
    @checked
    def within(other: Float[Tensor, " j"], count: int = 0) -> Float[Tensor, " j"]:
        return other[count:]

    return within(row, 1)


WRONG = {
    "another size than an argument before": lambda: product(TABLE, torch.ones(2)),
    "an axis less": lambda: product(TABLE[0], ROW),
    "another dtype": lambda: product(TABLE.long(), ROW),
    "by its name": lambda: product(row=torch.ones(2), table=TABLE),
    "a result of another size": lambda: doubled(-ROW),
    "neither": lambda: either(3),
    "one of the others": lambda: either(ROW, ROW.long(), torch.ones(2).long()),
    "an option": lambda: either(ROW, more=1.5),
    "one of a pair": lambda: pair((ROW, torch.ones(2))),
    "not the size that is named": lambda: repeated(ROW, 4),
    "a shape in quotes": lambda: later(TABLE),
    "no shape, and a wrong type": lambda: counted("three"),
    "no shape, and a wrong result": lambda: counted(-1),
    "a method's result": lambda: Layer().forward(-ROW),
    "a static method's result": lambda: Layer.make(0),
    "a property's result": lambda: Layer().name,
    "a field": lambda: Sizes(ROW, torch.ones(2).long()),
    "inside of a function": lambda: inside(ROW),
}
RIGHT = [
    lambda: product(TABLE, ROW),
    lambda: product(torch.ones(4, 2), torch.ones(2)),  # no size is kept for the next
    lambda: doubled(ROW),
    lambda: either(None, ROW.long(), more=1),
    lambda: pair((ROW, ROW)),
    lambda: repeated(ROW, 3),
    lambda: later(torch.ones(2, 2)),
    lambda: counted(3),
    lambda: Layer().forward(ROW),
    lambda: Layer.make(1),
    lambda: Sizes(ROW, ROW.long()),
]


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG.keys())
def test_what_does_not_fit_is_noticed(call):
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize("call", RIGHT, ids=range(len(RIGHT)))
def test_what_fits_passes(call):
    call()


def test_a_call_inside_of_a_call_has_sizes_of_its_own():
    @checked
    def outer(row: Float[Tensor, " j"]) -> Float[Tensor, " j"]:
        product(torch.ones(7, 2), torch.ones(2))
        counted(1)
        return row

    outer(ROW)


def test_an_importer_meets_no_checks(as_importer):
    assert counted(-1) == -1
    assert doubled(-ROW).shape == (3,)
    with pytest.raises(RuntimeError, match="size mismatch"):
        product(TABLE, torch.ones(2))


def test_the_package_of_this_run_is_checked(request):
    if not request.config.getoption("jaxtyping_packages"):
        pytest.skip("this run does not ask for it")
    assert jaxtyping.jaxtyped is shapes.jaxtyped
    with pytest.raises(TypeError, match="violates type hint"):
        attend(TABLE.long(), TABLE, TABLE)
    with pytest.raises(TypeError, match="violates type hint"):
        causal_mask("three")

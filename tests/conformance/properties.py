"""All properties, in the order of the table."""

from . import equals, hides, forms, derivatives, uses, handed, remembers, compiled  # noqa: F401, I001
from .suite import PROPERTIES

__all__ = ["PROPERTIES"]

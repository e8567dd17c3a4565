"""The shape checks of a test run, at a third of their cost.

`--jaxtyping-packages` decorates all functions with `jaxtyping.jaxtyped`, and most of
them name no shape: these need no memory of sizes, only their types looked at. Those
that do name one have it looked at once, and not again with what they return.
"""

import functools
import inspect
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

whole = jaxtyping.jaxtyped
typed = beartype(conf=BeartypeConf(violation_type=TypeError))


def has_shape(hint) -> bool:
    """Is it an array of some shape, or made of such, or not known yet?"""
    if isinstance(hint, list | tuple):
        return any(map(has_shape, hint))
    array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return array or isinstance(hint, str) or has_shape(typing.get_args(hint))


def jaxtyped(*args, typechecker):
    """What the import hook calls in place of jaxtyping's own."""

    def decorate(f):
        if not inspect.isfunction(f) or inspect.isgeneratorfunction(f):
            return whole(f, typechecker=typechecker)
        if not f.__annotations__:
            return f
        checked = typed(f)
        if has_shape([*f.__annotations__.values()]):
            checked = whole(checked, typechecker=None)

        @functools.wraps(f)
        def call(*args, **kwargs):
            __tracebackhide__ = True
            shut = jaxtyping.config.jaxtyping_disable
            return (f if shut else checked)(*args, **kwargs)

        return call

    return decorate(*args) if args else decorate

"""Small inputs that several tests draw, with a prime size on every axis."""

import torch


def some_tensors(dtype=torch.float32, batch=(2, 3)):
    """Queries, keys and values: 5 and 7 tokens of width 11, values of width 13."""
    queries = torch.randn(*batch, 5, 11, dtype=dtype)
    keys = torch.randn(*batch, 7, 11, dtype=dtype)
    values = torch.randn(*batch, 7, 13, dtype=dtype)
    return queries, keys, values


def some_mask(*shape, blind=None):
    """A random mask in which every query but the blind one sees its first key."""
    mask = torch.rand(*shape) < 0.5
    mask[..., 0] = True
    if blind is not None:
        mask[..., blind, :] = False
    return mask

"""PyTorch's own form of a mechanism, with the same weights."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def by_call(f, tensors, allowed, *, scale=None, bias=None):
    """`scaled_dot_product_attention` in its plain form, not the one that is fused."""
    mask = allowed
    if bias is not None:
        mask = bias.masked_fill(~allowed, -torch.inf)
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=scale)


def by_call_on_itself(f, tensors, allowed):
    (x,) = tensors
    return by_call(f, (x, x, x), allowed, scale=1.0)


def by_module(f, tensors, allowed):
    """`nn.MultiheadAttention`, filled with our layers."""
    x, other = tensors[0], tensors[-1]
    heads = [*getattr(f, "heads", [f])]
    weights, biases = [], []
    for name in ("W_query", "W_key", "W_value"):
        layers = [getattr(head, name) for head in heads]
        weights.append(torch.cat([layer.weight for layer in layers]))
        zeros = weights[-1].new_zeros(len(weights[-1]))
        bias = [layer.bias for layer in layers]
        biases.append(zeros if bias[0] is None else torch.cat(bias))
    width, count = len(weights[0]), getattr(f, "num_heads", len(heads))
    options = {"kdim": other.shape[-1], "vdim": other.shape[-1], "batch_first": True}
    peer = nn.MultiheadAttention(width, count, dtype=x.dtype, **options)
    with torch.no_grad():
        if peer.in_proj_weight is None:
            for name, weight in zip("qkv", weights, strict=True):
                getattr(peer, f"{name}_proj_weight").copy_(weight)
        else:
            peer.in_proj_weight.copy_(torch.cat(weights))
        peer.in_proj_bias.copy_(torch.cat(biases))
        out_proj = getattr(f, "out_proj", None)
        peer.out_proj.weight.copy_(
            torch.eye(width) if out_proj is None else out_proj.weight
        )
        peer.out_proj.bias.zero_() if out_proj is None else peer.out_proj.bias.copy_(
            out_proj.bias
        )
    lead = x.shape[:-2]
    if allowed.ndim == len(lead) + 2:
        allowed = allowed.unsqueeze(-3)
    forbidden = ~allowed.expand(*lead, count, *allowed.shape[-2:])
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (x, other, other)]
    context, _ = peer(*flat, attn_mask=forbidden.reshape(-1, *allowed.shape[-2:]))
    return context.reshape(*lead, *context.shape[-2:])

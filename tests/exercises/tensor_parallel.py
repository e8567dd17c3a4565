"""Answers to the exercises of `scale/tensor_parallel`."""
# ruff: noqa: F821  the names are the chapter's


class fused_rows:
    class right:
        def by_cutting_a_table(rank, ranks, num_heads, head_dim):
            table = torch.arange(3 * num_heads * head_dim).reshape(3, ranks, -1)
            return table[:, rank].flatten().tolist()

        def head_by_head(rank, ranks, num_heads, head_dim):
            own = range(num_heads)[heads_of(rank, ranks, num_heads, num_heads)]
            return [
                (third * num_heads + head) * head_dim + place
                for third in range(3)
                for head in own
                for place in range(head_dim)
            ]

    class wrong:
        def straight(rank, ranks, num_heads, head_dim):
            size = 3 * num_heads * head_dim // ranks
            return list(range(rank * size, (rank + 1) * size))

        def heads_for_rows(rank, ranks, num_heads, head_dim):
            own = num_heads // ranks
            starts = [third * num_heads + rank * own for third in range(3)]
            return [start + row for start in starts for row in range(own)]

        def dealt_like_cards(rank, ranks, num_heads, head_dim):
            width = num_heads * head_dim
            return [row for row in range(3 * width) if row % ranks == rank]

        def head_by_head_in_turn(rank, ranks, num_heads, head_dim):
            width, own = num_heads * head_dim, num_heads * head_dim // ranks
            places = range(rank * own, (rank + 1) * own)
            return [third * width + place for place in places for third in range(3)]


class cached:
    class right:
        def by_rounding_up(tokens, num_heads, num_kv_heads, head_dim, ranks):
            return 2 * tokens * head_dim * -(-num_kv_heads // ranks)

        def by_the_share(tokens, num_heads, num_kv_heads, head_dim, ranks):
            own = heads_of(0, ranks, num_heads, num_kv_heads)
            return tokens * (own.stop - own.start) * head_dim * 2

    class wrong:
        def of_the_query_heads(tokens, num_heads, num_kv_heads, head_dim, ranks):
            return 2 * tokens * num_heads // ranks * head_dim

        def keys_without_values(tokens, num_heads, num_kv_heads, head_dim, ranks):
            return tokens * max(num_kv_heads // ranks, 1) * head_dim

        def less_than_a_head(tokens, num_heads, num_kv_heads, head_dim, ranks):
            return 2 * tokens * num_kv_heads * head_dim // ranks

        def none_of_few(tokens, num_heads, num_kv_heads, head_dim, ranks):
            return 2 * tokens * (num_kv_heads // ranks) * head_dim

        def not_cut(tokens, num_heads, num_kv_heads, head_dim, ranks):
            return 2 * tokens * num_kv_heads * head_dim


def _share(layer, x, rank, ranks, bias=None, keys=None, rows=None, inner=True):
    """The share of a rank, with what makes it wrong."""
    H, G, d = layer.num_heads, layer.num_kv_heads, layer.head_dim

    def heads(part, own):
        rows = slice(own.start * d, own.stop * d)
        inside = part.bias[rows] if inner and part.bias is not None else None
        each = linear(x, part.weight[rows], inside)
        return each.unflatten(-1, (-1, d)).transpose(-2, -3)

    own = heads_of(rank, ranks, H, H)
    theirs = keys or heads_of(rank, ranks, H, G)
    queries = heads(layer.W_query, own)
    keys, values = heads(layer.W_key, theirs), heads(layer.W_value, theirs)
    context = attend(queries, keys, values, causal=True)
    rows = rows or slice(own.start * d, own.stop * d)
    context = context.transpose(-2, -3).flatten(-2)
    return linear(context, layer.out_proj.weight[:, rows], bias)


def _masked(layer, x, rank, own):
    """The share of these heads: all are computed, and the others set to zero."""

    def heads(part):
        return part(x).unflatten(-1, (-1, layer.head_dim)).transpose(-2, -3)

    three = map(heads, (layer.W_query, layer.W_key, layer.W_value))
    context = attend(*three, causal=True).transpose(-2, -3)
    mask = torch.zeros(layer.num_heads, 1)
    mask[own] = 1
    bias = layer.out_proj.bias if rank == 0 else None
    return linear((context * mask).flatten(-2), layer.out_proj.weight, bias)


class share:
    class right:
        def with_cut_weights(layer, x, rank, ranks):
            bias = layer.out_proj.bias if rank == ranks - 1 else None
            return _share(layer, x, rank, ranks, bias)

        def with_a_piece_of_the_bias(layer, x, rank, ranks):
            bias = layer.out_proj.bias
            return _share(layer, x, rank, ranks, None if bias is None else bias / ranks)

        def all_heads_and_zeros_for_those_of_others(layer, x, rank, ranks):
            own = heads_of(rank, ranks, layer.num_heads, layer.num_heads)
            return _masked(layer, x, rank, own)

    class wrong:
        def the_bias_on_each_rank(layer, x, rank, ranks):
            return _share(layer, x, rank, ranks, layer.out_proj.bias)

        def no_bias(layer, x, rank, ranks):
            return _share(layer, x, rank, ranks)

        def without_the_inner_biases(layer, x, rank, ranks):
            bias = layer.out_proj.bias if rank == 0 else None
            return _share(layer, x, rank, ranks, bias, inner=False)

        def all_on_the_first_rank(layer, x, rank, ranks):
            return layer(x) if rank == 1 else 0 * layer(x)

        def always_the_first_keys(layer, x, rank, ranks):
            bias = layer.out_proj.bias if rank == 0 else None
            first = heads_of(0, ranks, layer.num_heads, layer.num_kv_heads)
            return _share(layer, x, rank, ranks, bias, keys=first)

        def divided_by_the_ranks(layer, x, rank, ranks):
            return layer(x) / ranks

        def the_first_columns(layer, x, rank, ranks):
            bias = layer.out_proj.bias if rank == 0 else None
            width = layer.num_heads // ranks * layer.head_dim
            return _share(layer, x, rank, ranks, bias, rows=slice(0, width))

        def tokens_dealt(layer, x, rank, ranks):
            whole = layer(x)
            part = torch.zeros_like(whole)
            part[:, rank::ranks] = whole[:, rank::ranks]
            return part

        def columns_of_the_output(layer, x, rank, ranks):
            whole = layer(x)
            part = torch.zeros_like(whole)
            part[..., rank::ranks] = whole[..., rank::ranks]
            return part

        def a_larger_piece_for_later_ranks(layer, x, rank, ranks):
            return layer(x) * (rank + 1) * 2 / (ranks * (ranks + 1))

        def heads_dealt_like_cards(layer, x, rank, ranks):
            return _masked(layer, x, rank, slice(rank, None, ranks))

"""Answers to the exercises of `reading/interface`."""
# ruff: noqa: F821  the names are the chapter's


class additive:
    class right:
        def by_where(mask):
            least = torch.tensor(torch.finfo(torch.float32).min)
            return torch.where(mask, torch.tensor(0.0), least)

        def by_a_product(mask):
            return (~mask).float() * torch.finfo(torch.float32).min

    class wrong:
        def the_other_way(mask):
            return torch.zeros(mask.shape).masked_fill(mask, -3.4028234663852886e38)

        def infinity(mask):
            return torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)

        def one_and_zero(mask):
            return mask.float()

        def least_of_half(mask):
            return (~mask).float() * torch.finfo(torch.float16).min

        def least_above_zero(mask):
            return (~mask).float() * torch.finfo(torch.float32).tiny

        def in_64_bits(mask):
            return (~mask).double() * torch.finfo(torch.float32).min

        def the_future(mask):
            least = torch.finfo(torch.float32).min
            return torch.full(mask.shape, least).triu(1)

        def a_row(mask):
            return ((~mask).float() * torch.finfo(torch.float32).min).flatten()

        def of_four_axes_alone(mask):
            table = torch.zeros(1, 1, *mask.shape[-2:])
            return table.masked_fill(~mask, torch.finfo(torch.float32).min)


class upper_left:
    class right:
        def by_places(queries, keys):
            return torch.arange(keys) <= torch.arange(queries)[:, None]

        def by_lists(queries, keys):
            return torch.tensor([[k <= q for k in range(keys)] for q in range(queries)])

    class wrong:
        def the_last_rows_of_a_square(queries, keys):
            return torch.ones(keys, keys, dtype=torch.bool).tril()[-queries:]

        def lower_right(queries, keys):
            return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)

        def without_itself(queries, keys):
            return torch.ones(queries, keys, dtype=torch.bool).tril(-1)

        def the_hidden_ones(queries, keys):
            return torch.ones(queries, keys, dtype=torch.bool).triu(1)

        def square(queries, keys):
            return torch.ones(queries, queries, dtype=torch.bool).tril()

        def floats(queries, keys):
            return torch.ones(queries, keys).tril()


class plain:
    class right:
        def by_groups(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            groups = query.unflatten(1, (key.shape[1], -1))
            scores = scaling * groups @ key[:, :, None].mT
            hidden = ~attention_mask[:, :, None]
            weights = scores.masked_fill(hidden, -1e30).softmax(-1)
            dropped = nn.functional.dropout(weights, dropout, module.training)
            context = (dropped @ value[:, :, None]).flatten(1, 2)
            return context.transpose(1, 2), weights.flatten(1, 2)

        def by_an_added_mask(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            several = query.shape[1] // key.shape[1]
            key = key[:, :, None].expand(-1, -1, several, -1, -1).flatten(1, 2)
            value = value[:, :, None].expand(-1, -1, several, -1, -1).flatten(1, 2)
            scores = torch.einsum("bhid,bhjd->bhij", query * scaling, key)
            added = torch.where(attention_mask, 0.0, -torch.inf)
            weights = (scores + added).softmax(dim=-1)
            kept = (torch.rand_like(weights) >= dropout) / (1 - dropout)
            return torch.einsum("bhij,bhjd->bihd", weights * kept, value), weights

    class wrong:
        def heads_tiled(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            several = query.shape[1] // key.shape[1]
            key, value = (t.repeat(1, several, 1, 1) for t in (key, value))
            return _plain(query, key, value, attention_mask, scaling, dropout)

        def heads_first(module, *inputs, sliding_window=None, **options):
            context, weights = _plain(*inputs, **options)
            return context.transpose(1, 2), weights

        def axes_run_together(module, *inputs, sliding_window=None, **options):
            context, weights = _plain(*inputs, **options)
            return context.transpose(1, 2).reshape(context.shape), weights

        def its_own_scale(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            scaling = query.shape[-1] ** -0.5
            return _plain(query, key, value, attention_mask, scaling, dropout)

        def the_mask_turned(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            return _plain(query, key, value, ~attention_mask, scaling, dropout)

        def no_mask(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            everything = torch.ones_like(attention_mask)
            return _plain(query, key, value, everything, scaling, dropout)

        def over_the_queries(module, *inputs, sliding_window=None, **options):
            return _plain(*inputs, axis=-2, **options)

        def no_dropout(module, *inputs, sliding_window=None, dropout=0.0):
            return _plain(*inputs)

        def dropout_of_the_scores(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            query = nn.functional.dropout(query, dropout)
            return _plain(query, key, value, attention_mask, scaling)

        def dropout_of_the_values(
            module, query, key, value, attention_mask, scaling, dropout=0.0, **others
        ):
            value = nn.functional.dropout(value, dropout)
            return _plain(query, key, value, attention_mask, scaling)

        def dropout_of_the_context(
            module, *inputs, sliding_window=None, dropout=0.0, **others
        ):
            context, weights = _plain(*inputs)
            return nn.functional.dropout(context, dropout), weights

        def dropout_keeps_its_share(
            module, *inputs, sliding_window=None, dropout=0.0, **others
        ):
            return _plain(*inputs, 1 - dropout if dropout else 0.0)

        def dropout_without_growth(
            module, *inputs, sliding_window=None, dropout=0.0, **others
        ):
            return _plain(
                *inputs, dropout, drop=lambda w, p: w * (torch.rand_like(w) >= p)
            )

        def dropout_alike_in_all_heads(
            module, *inputs, sliding_window=None, dropout=0.0, **others
        ):
            def drop(weights, p):
                return weights * (torch.rand_like(weights[:, :1]) >= p) / (1 - p)

            return _plain(*inputs, dropout, drop=drop)

        def dropped_weights_returned(module, *inputs, sliding_window=None, dropout=0.0):
            query, _, value, *_ = inputs
            value = value.repeat_interleave(query.shape[1] // value.shape[1], 1)
            _, weights = _plain(*inputs)
            weights = nn.functional.dropout(weights, dropout)
            return (weights @ value).transpose(1, 2), weights


def _plain(query, key, value, mask, scaling, dropout=0.0, *, axis=-1, drop=None):
    """What is right, but for what a mistake changes."""
    several = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(several, 1) for t in (key, value))
    scores = scaling * query @ key.mT
    weights = scores.masked_fill(~mask, -1e30).softmax(axis)
    dropped = (drop or nn.functional.dropout)(weights, dropout)
    return (dropped @ value).transpose(1, 2), weights

"""Answers to the exercises of `memory/latent`."""
# ruff: noqa: F821  the names are the chapter's


class as_groups:
    class right:
        def by_halves(latent_dim, rotary_dim, head_dim):
            return 0.5 * (latent_dim + rotary_dim) / head_dim

        def in_two_parts(latent_dim, rotary_dim, head_dim):
            one = head_dim + head_dim
            return latent_dim / one + rotary_dim / one

    class wrong:
        def keys_alone(latent_dim, rotary_dim, head_dim):
            return (latent_dim + rotary_dim) / head_dim

        def without_the_slice(latent_dim, rotary_dim, head_dim):
            return latent_dim / (2 * head_dim)

        def whole(latent_dim, rotary_dim, head_dim):
            return (latent_dim + rotary_dim) // (2 * head_dim)

        def the_other_way_round(latent_dim, rotary_dim, head_dim):
            return 2 * head_dim / (latent_dim + rotary_dim)


class merged:
    class right:
        def by_einsum(W_query, W_key, num_heads):
            queries = W_query.view(num_heads, -1, W_query.shape[1])
            keys = W_key.view(num_heads, -1, W_key.shape[1])
            return torch.einsum("hdx,hdc->hxc", queries, keys)

        def head_by_head(W_query, W_key, num_heads):
            pairs = zip(W_query.chunk(num_heads), W_key.chunk(num_heads), strict=True)
            return torch.stack([queries.T @ keys for queries, keys in pairs])

        def in_place(W_query, W_key, num_heads):
            pairs = zip(W_query.chunk(num_heads), W_key.chunk(num_heads), strict=True)
            both = torch.stack([q.T @ k for q, k in pairs])
            W_query.zero_(), W_key.zero_()
            return both

    class wrong:
        def all_heads_at_once(W_query, W_key, num_heads):
            return (W_query.T @ W_key).expand(num_heads, -1, -1)

        def the_other_side(W_query, W_key, num_heads):
            pairs = zip(W_query.chunk(num_heads), W_key.chunk(num_heads), strict=True)
            return torch.stack([keys.T @ queries for queries, keys in pairs])

        def dealt_like_cards(W_query, W_key, num_heads):
            queries = W_query.unflatten(0, (-1, num_heads)).transpose(0, 1)
            keys = W_key.unflatten(0, (-1, num_heads)).transpose(0, 1)
            return queries.mT @ keys

        def scaled(W_query, W_key, num_heads):
            queries = W_query.unflatten(0, (num_heads, -1))
            keys = W_key.unflatten(0, (num_heads, -1))
            return queries.mT @ keys / queries.shape[1] ** 0.5


class projected:
    class right:
        def head_by_head(W_value, W_out, num_heads):
            values = W_value.chunk(num_heads)
            back = W_out.chunk(num_heads, dim=1)
            pairs = zip(back, values, strict=True)
            return torch.cat([out @ value for out, value in pairs], dim=1)

        def by_blocks(W_value, W_out, num_heads):
            return W_out @ torch.block_diag(*W_value.chunk(num_heads))

    class wrong:
        def all_heads_at_once(W_value, W_out, num_heads):
            return (W_out @ W_value).repeat(1, num_heads)

        def back_by_columns(W_value, W_out, num_heads):
            back = W_out.unflatten(1, (-1, num_heads)).transpose(1, 2)
            values = W_value.unflatten(0, (num_heads, -1))
            return torch.einsum("ohe,hec->ohc", back, values).flatten(1)

        def heads_behind(W_value, W_out, num_heads):
            values = W_value.unflatten(0, (num_heads, -1))
            back = W_out.unflatten(1, (num_heads, -1))
            return torch.einsum("ohe,hec->och", back, values).flatten(1)

        def summed(W_value, W_out, num_heads):
            values = W_value.unflatten(0, (num_heads, -1))
            back = W_out.unflatten(1, (num_heads, -1))
            return torch.einsum("ohe,hec->oc", back, values)

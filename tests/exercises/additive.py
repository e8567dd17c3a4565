"""Answers to the exercises of `history/additive`."""
# ruff: noqa: F821  the names are the chapter's


class num_trained:
    class right:
        def layer_by_layer(d_query, d_key, d_hidden):
            return d_query * d_hidden + d_key * d_hidden + d_hidden

        def as_a_tensor(d_query, d_key, d_hidden):
            return torch.tensor(d_hidden * (1 + d_key + d_query))

    class wrong:
        def without_v(d_query, d_key, d_hidden):
            return (d_query + d_key) * d_hidden

        def with_biases(d_query, d_key, d_hidden):
            return (d_query + d_key + 3) * d_hidden

        def one_matrix(d_query, d_key, d_hidden):
            return (d_query + 1) * d_hidden

        def multiplied(d_query, d_key, d_hidden):
            return d_query * d_key * d_hidden


class largest_weight:
    class right:
        def by_softmax(v, num_keys):
            scores = torch.full((num_keys,), -v.abs().sum())
            scores[0] = v.abs().sum()
            return scores.softmax(dim=0)[0]

        def by_sigmoid(v, num_keys):
            log = torch.tensor(float(num_keys - 1)).log()
            return torch.sigmoid(2 * v.abs().sum() - log).item()

    class wrong:
        def half_the_gap(v, num_keys):
            return (1 / (1 + (num_keys - 1) * torch.exp(-v.abs().sum()))).item()

        def signs_kept(v, num_keys):
            return (1 / (1 + (num_keys - 1) * torch.exp(-2 * v.sum()))).item()

        def one_key_too_many(v, num_keys):
            return (1 / (1 + num_keys * torch.exp(-2 * v.abs().sum()))).item()

        def two_keys(v, num_keys):
            return (1 / (1 + torch.exp(-2 * v.abs().sum()))).item()

        def no_bound(v, num_keys):
            return 1.0

        def by_the_norm(v, num_keys):
            return (1 / (1 + (num_keys - 1) * torch.exp(-2 * v.norm()))).item()


class scores_in_pieces:
    class right:
        def by_a_loop(queries, keys, v, size):
            made = []
            for start in range(0, queries.shape[-2], size):
                piece = queries[..., start : start + size, :]
                made.append(additive_score(piece, keys, v))
            return torch.cat(made, dim=-2)

        def into_a_table(queries, keys, v, size):
            length = queries.shape[-2]
            table = queries.new_empty(*queries.shape[:-1], keys.shape[-2])
            for start in range(0, length, size):
                rows = slice(start, min(start + size, length))
                table[..., rows, :] = additive_score(queries[..., rows, :], keys, v)
            return table

    class wrong:
        def at_once(queries, keys, v, size):
            return additive_score(queries, keys, v)

        def so_many_pieces(queries, keys, v, size):
            pieces = queries.chunk(size, dim=-2)
            return torch.cat([additive_score(p, keys, v) for p in pieces], dim=-2)

        def pieces_of_keys(queries, keys, v, size):
            pieces = keys.split(size, dim=-2)
            return torch.cat([additive_score(queries, p, v) for p in pieces], dim=-1)

        def pieces_of_the_batch(queries, keys, v, size):
            pairs = zip(queries.split(size), keys.split(size), strict=True)
            return torch.cat([additive_score(q, k, v) for q, k in pairs])

        def forgets_what_is_left(queries, keys, v, size):
            whole = queries.shape[-2] // size * size
            pieces = queries[..., :whole, :].split(size, dim=-2)
            return torch.cat([additive_score(p, keys, v) for p in pieces], dim=-2)

        def one_beside_the_other(queries, keys, v, size):
            pieces = [additive_score(p, keys, v) for p in queries.split(size, dim=-2)]
            return torch.cat([p.transpose(-2, -1) for p in pieces], dim=-1)

        def a_list_of_them(queries, keys, v, size):
            return torch.stack(
                [additive_score(each, keys, v) for each in queries.split(1, dim=-2)]
            )

"""Answers to the exercises of `speed/flash`."""
# ruff: noqa: F821  the names are the chapter's


class count_tiles:
    class right:
        def as_a_triangle(length, side):
            bands = -(-length // side)
            return bands * (bands + 1) // 2

        def by_a_loop(length, side):
            found = 0
            for _, columns in tiles(length, length, causal=True, tile=(side, side)):
                for _ in columns:
                    found += 1
            return found

    class wrong:
        def whole_tiles_alone(length, side):
            bands = length // side
            return bands * (bands + 1) // 2

        def without_causal(length, side):
            return sum(len(c) for _, c in tiles(length, length, tile=(side, side)))

        def bands(length, side):
            return len(list(tiles(length, length, causal=True, tile=(side, side))))

        def half_of_the_square(length, side):
            return (-(-length // side)) ** 2 // 2

        def scores_for_tiles(length, side):
            return length * (length + 1) // 2 // side**2

        def below_the_diagonal(length, side):
            bands = -(-length // side)
            return bands * (bands - 1) // 2


class waste:
    class right:
        def by_a_mask(length, window, tile):
            made = torch.zeros(length, length, dtype=torch.bool)
            options = {"causal": True, "window": window, "tile": tile}
            for rows, columns in tiles(length, length, **options):
                for some in columns:
                    made[rows, some] = True
            seen = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - window)
            return (made & ~seen).sum() / made.sum()

        def one_minus_the_rest(length, window, tile):
            made = 0
            options = {"causal": True, "window": window, "tile": tile}
            for rows, columns in tiles(length, length, **options):
                first, last = columns[0].start, columns[-1].stop
                made += (rows.stop - rows.start) * (last - first)
            short = min(window, length)
            needed = short * (short + 1) // 2 + (length - short) * short
            return 1 - needed / made

    class wrong:
        def as_if_all_saw_the_window(length, window, tile):
            bands = tiles(length, length, causal=True, window=window, tile=tile)
            made = sum(
                (r.stop - r.start) * (s.stop - s.start) for r, c in bands for s in c
            )
            return (made - length * window) / made

        def the_share_that_is_needed(length, window, tile):
            bands = tiles(length, length, causal=True, window=window, tile=tile)
            made = sum(
                (r.stop - r.start) * (s.stop - s.start) for r, c in bands for s in c
            )
            return sum(min(i + 1, window) for i in range(length)) / made

        def how_many(length, window, tile):
            bands = tiles(length, length, causal=True, window=window, tile=tile)
            made = sum(
                (r.stop - r.start) * (s.stop - s.start) for r, c in bands for s in c
            )
            return made - sum(min(i + 1, window) for i in range(length))

        def of_those_that_are_needed(length, window, tile):
            bands = tiles(length, length, causal=True, window=window, tile=tile)
            made = sum(
                (r.stop - r.start) * (s.stop - s.start) for r, c in bands for s in c
            )
            needed = sum(min(i + 1, window) for i in range(length))
            return (made - needed) / needed

        def tiles_are_never_cut(length, window, tile):
            bands = tiles(length, length, causal=True, window=window, tile=tile)
            made = sum(tile[0] * tile[1] * len(columns) for _, columns in bands)
            return (made - sum(min(i + 1, window) for i in range(length))) / made

        def only_the_future(length, window, tile):
            bands = tiles(length, length, causal=True, window=window, tile=tile)
            made = future = 0
            for rows, columns in bands:
                for some in columns:
                    made += (rows.stop - rows.start) * (some.stop - some.start)
                    for i in range(rows.start, rows.stop):
                        future += sum(j > i for j in range(some.start, some.stop))
            return future / made

        def without_the_window(length, window, tile):
            bands = tiles(length, length, causal=True, tile=tile)
            made = sum(
                (r.stop - r.start) * (s.stop - s.start) for r, c in bands for s in c
            )
            return (made - sum(min(i + 1, window) for i in range(length))) / made


class values_gradient:
    class right:
        def scaled_in_the_tile(queries, keys, do, lse):
            gradient, length, scale = (
                torch.zeros_like(do),
                len(keys),
                keys.shape[1] ** -0.5,
            )
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    scores = (scale * queries[rows]) @ keys[some].mT
                    weights = torch.exp(scores - lse[rows].unsqueeze(1))
                    weights.tril_(rows.start - some.start)
                    gradient[some].addmm_(weights.mT, do[rows])
            return gradient

        def in_place(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    weights = queries[rows] @ keys[some].T
                    weights.div_(queries.shape[-1] ** 0.5).sub_(lse[rows, None])
                    weights.exp_().tril_(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def one_score_at_a_time(queries, keys, do, lse):
            gradient, scale = torch.zeros_like(do), keys.shape[1] ** -0.5
            for i in range(len(queries)):
                for j in range(i + 1):
                    score = scale * (queries[i] * keys[j]).sum()
                    gradient[j] += (score - lse[i]).exp() * do[i]
            return gradient

    class wrong:
        def all_queries_scaled(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            queries = queries * queries.shape[-1] ** -0.5
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    weights = (queries[rows] @ keys[some].T - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def in_float64(queries, keys, do, lse):
            queries, keys, do, lse = (t.double() for t in (queries, keys, do, lse))
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    weights = queries[rows] @ keys[some].T / 2**0.5
                    weights = (weights - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def four_by_four(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(4, 4)):
                for some in columns:
                    scores = queries[rows] @ keys[some].T / queries.shape[-1] ** 0.5
                    weights = (scores - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def eight_by_four_in_place(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(8, 4)):
                for some in columns:
                    weights = queries[rows] @ keys[some].T
                    weights.div_(queries.shape[-1] ** 0.5).sub_(lse[rows, None])
                    weights.exp_().tril_(rows.start - some.start)
                    gradient[some].addmm_(weights.T, do[rows])
            return gradient

        def whole_rows_in_place(queries, keys, do, lse):
            gradient = torch.zeros_like(do)
            for i, query in enumerate(queries):
                weights = keys[: i + 1] @ query
                weights.div_(len(query) ** 0.5).sub_(lse[i]).exp_()
                gradient[: i + 1].addr_(weights, do[i])
            return gradient

        def the_whole_table(queries, keys, do, lse):
            scores = queries @ keys.T / queries.shape[-1] ** 0.5
            return (scores - lse[:, None]).exp().tril().T @ do

        def whole_bands(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, _ in tiles(length, length, causal=True, tile=(2, 2)):
                scores = queries[rows] @ keys.T / queries.shape[-1] ** 0.5
                weights = (scores - lse[rows, None]).exp().tril(rows.start)
                gradient += weights.T @ do[rows]
            return gradient

        def the_future_too(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    scores = queries[rows] @ keys[some].T / queries.shape[-1] ** 0.5
                    weights = (scores - lse[rows, None]).exp()
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def forgets_to_scale(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    weights = (queries[rows] @ keys[some].T - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def shared_in_the_tile(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    scores = queries[rows] @ keys[some].T / queries.shape[-1] ** 0.5
                    weights = scores.softmax(dim=-1).tril(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

        def overwrites(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    scores = queries[rows] @ keys[some].T / queries.shape[-1] ** 0.5
                    weights = (scores - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[some] = weights.T @ do[rows]
            return gradient

        def not_transposed(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    scores = queries[rows] @ keys[some].T / queries.shape[-1] ** 0.5
                    weights = (scores - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[rows] += weights @ do[some]
            return gradient

        def keeps_every_tile(queries, keys, do, lse):
            gradient, length, kept = torch.zeros_like(do), len(queries), []
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    scores = queries[rows] @ keys[some].T / queries.shape[-1] ** 0.5
                    weights = (scores - lse[rows, None]).exp()
                    kept.append(weights.tril(rows.start - some.start))
                    gradient[some] += kept[-1].T @ do[rows]
            return gradient

        def queries_scaled_in_place(queries, keys, do, lse):
            gradient, length = torch.zeros_like(do), len(queries)
            queries /= queries.shape[-1] ** 0.5
            for rows, columns in tiles(length, length, causal=True, tile=(2, 2)):
                for some in columns:
                    weights = (queries[rows] @ keys[some].T - lse[rows, None]).exp()
                    weights = weights.tril(rows.start - some.start)
                    gradient[some] += weights.T @ do[rows]
            return gradient

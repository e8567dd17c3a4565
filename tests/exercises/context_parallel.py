"""Answers to the exercises of `scale/context_parallel`."""
# ruff: noqa: F821  the names are the chapter's


class ahead:
    class right:
        def by_places(length):
            places = torch.arange(length)
            return places - places[:, None]

        def by_turning(length):
            return context_parallel(length).T

    class wrong:
        def steps_back(length):
            return context_parallel(length)

        def no_sign(length):
            return context_parallel(length).abs()

        def one_length(length):
            return -context_parallel(3)


class nearby:
    class right:
        def by_both_sides(length, reach):
            steps = context_parallel(length)
            return (steps <= reach) & (steps >= -reach)

        def by_diagonals(length, reach):
            return torch.ones(length, length).triu(-reach).tril(reach).bool()

    class wrong:
        def sees_all_that_follow(length, reach):
            return context_parallel(length) <= reach

        def reach_left_out(length, reach):
            return context_parallel(length).abs() < reach

        def numbers(length, reach):
            return (context_parallel(length).abs() <= reach).float()


class late:
    class right:
        def by_places(queries, keys):
            places = torch.arange(keys)
            return places[keys - queries :, None] - places

        def row_by_row(queries, keys):
            rows = [keys - queries + i - torch.arange(keys) for i in range(queries)]
            return torch.stack(rows)

    class wrong:
        def first_of_the_keys(queries, keys):
            return context_parallel(keys)[:queries]

        def last_keys_alone(queries, keys):
            return context_parallel(queries)

        def keys_by_queries(queries, keys):
            return context_parallel(keys)[:, -queries:]

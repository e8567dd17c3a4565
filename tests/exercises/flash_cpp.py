"""Answers to the exercises of `speed/flash_cpp`."""
# ruff: noqa: F821  the names are the chapter's


class ahead:
    class right:
        def by_places(length):
            places = torch.arange(length)
            return places - places[:, None]

        def by_turning(length):
            return flash_cpp(length).T

    class wrong:
        def steps_back(length):
            return flash_cpp(length)

        def no_sign(length):
            return flash_cpp(length).abs()

        def one_length(length):
            return -flash_cpp(3)


class nearby:
    class right:
        def by_both_sides(length, reach):
            steps = flash_cpp(length)
            return (steps <= reach) & (steps >= -reach)

        def by_diagonals(length, reach):
            return torch.ones(length, length).triu(-reach).tril(reach).bool()

    class wrong:
        def sees_all_that_follow(length, reach):
            return flash_cpp(length) <= reach

        def reach_left_out(length, reach):
            return flash_cpp(length).abs() < reach

        def numbers(length, reach):
            return (flash_cpp(length).abs() <= reach).float()


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
            return flash_cpp(keys)[:queries]

        def last_keys_alone(queries, keys):
            return flash_cpp(queries)

        def keys_by_queries(queries, keys):
            return flash_cpp(keys)[:, -queries:]

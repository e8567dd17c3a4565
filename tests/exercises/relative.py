"""Answers to the exercises of `position/relative`."""
# ruff: noqa: F821  the names are the chapter's


class clipped:
    class right:
        def by_minimum(distance, most):
            return torch.minimum(
                torch.maximum(distance + most, torch.tensor(0)), torch.tensor(2 * most)
            )

        def by_where(distance, most):
            near = torch.where(distance > most, most, distance)
            return torch.where(near < -most, -most, near) + most

        def in_place(distance, most):
            return distance.clamp_(-most, most).add_(most)

    class wrong:
        def not_moved(distance, most):
            return distance.clamp(-most, most)

        def one_too_far(distance, most):
            return distance.clamp(-most, most) + most + 1

        def without_a_sign(distance, most):
            return distance.abs().clamp(max=most)

        def query_minus_key(distance, most):
            return (-distance).clamp(-most, most) + most

        def thrown_away(distance, most):
            return distance[distance.abs() <= most] + most

        def wrapped(distance, most):
            return (distance + most) % (2 * most + 1)


class by_key:
    class right:
        def with_zeros(num_heads):
            def bias(query_positions, key_positions):
                table = key_positions.unsqueeze(-2) + 0 * query_positions.unsqueeze(-1)
                return alibi_slopes(num_heads)[:, None, None] * table.unsqueeze(-3)

            return bias

        def before_the_last(num_heads):
            def bias(query_positions, key_positions):
                last = torch.zeros_like(query_positions) + 100
                return alibi(num_heads)(last, key_positions)

            return bias

    class wrong:
        def turned_round(num_heads):
            def bias(query_positions, key_positions):
                row = -alibi_slopes(num_heads)[:, None, None] * key_positions
                return row.expand(-1, len(query_positions), -1)

            return bias

        def batch_in_the_place_of_heads(num_heads):
            def bias(query_positions, key_positions):
                keys = key_positions.unsqueeze(-2)
                row = alibi_slopes(num_heads)[:, None, None] * keys
                return row.expand(*row.shape[:-2], query_positions.shape[-1], -1)

            return bias

        def heads_first(num_heads):
            def bias(query_positions, key_positions):
                batch, count = key_positions.shape[:-1], query_positions.shape[-1]
                slopes = alibi_slopes(num_heads).view(-1, *(1,) * len(batch), 1, 1)
                row = slopes * key_positions.unsqueeze(-2)
                return row.expand(*row.shape[:-2], count, -1)

            return bias

        def alibi_itself(num_heads):
            return alibi(num_heads)

        def by_where_it_lies(num_heads):
            def bias(query_positions, key_positions):
                places = torch.arange(len(key_positions))
                row = alibi_slopes(num_heads)[:, None, None] * places
                return row.expand(-1, len(query_positions), -1)

            return bias

        def one_row(num_heads):
            def bias(query_positions, key_positions):
                return alibi_slopes(num_heads)[:, None, None] * key_positions

            return bias

        def evenly_apart(num_heads):
            def bias(query_positions, key_positions):
                exponents = 8 * torch.arange(1, num_heads + 1) / num_heads
                row = 2.0 ** -exponents[:, None, None] * key_positions
                return row.expand(-1, len(query_positions), -1)

            return bias

        def in_float64(num_heads):
            def bias(query_positions, key_positions):
                slopes = alibi_slopes(num_heads).double()[:, None, None]
                row = slopes * key_positions[..., None, None, :]
                return row.expand(*row.shape[:-2], query_positions.shape[-1], -1)

            return bias


class only_distance:
    class right:
        def by_two_shifts(bias):
            places = torch.arange(16)
            tables = [bias(places + far, places + far) for far in (0, 1, 10)]
            return all(torch.allclose(tables[0], table) for table in tables)

        def by_diagonals(bias):
            table = bias(torch.arange(9), torch.arange(9))
            lines = [table.diagonal(n, -2, -1) for n in range(-8, 9)]
            return bool(
                all((line - line[..., :1]).abs().max() < 1e-6 for line in lines)
            )

    class wrong:
        def by_an_even_shift(bias):
            places = torch.arange(16)
            return torch.allclose(bias(places, places), bias(places + 2, places + 2))

        def from_the_second_place_on(bias):
            places = torch.arange(1, 16)
            return torch.allclose(bias(places, places), bias(places + 1, places + 1))

        def always(bias):
            return True

        def never(bias):
            return False

        def by_the_last_query(bias):
            places, last = torch.arange(3), torch.tensor([2])
            return torch.allclose(bias(last, places), bias(last + 1, places + 1))

        def by_symmetry(bias):
            table = bias(torch.arange(9), torch.arange(9))
            return torch.allclose(table, table.mT)

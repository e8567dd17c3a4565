"""Answers to the exercises of `tools/maps`."""
# ruff: noqa: F821  the names are the chapter's


class mean_map:
    class right:
        def by_the_sum(weights):
            return weights.sum(dim=0) / weights.shape[0]

        def one_by_one(weights):
            total = torch.zeros_like(weights[0])
            for head in weights:
                total = total + head
            return total / len(weights)

        def from_the_end(weights):
            return weights.mean(-3)

        def in_place(weights):
            weights /= len(weights)
            return weights.sum(dim=0)

    class wrong:
        def the_sum(weights):
            return weights.sum(dim=0)

        def over_queries(weights):
            return weights.mean(dim=1)

        def over_keys(weights):
            return weights.mean(dim=-1)

        def the_first(weights):
            return weights[0]

        def the_largest(weights):
            return weights.amax(dim=0)

        def the_largest_shared_out(weights):
            most = weights.amax(dim=0)
            return most / most.sum(dim=-1, keepdim=True)

        def one_axis_too_many(weights):
            return weights.mean(dim=0, keepdim=True)


class mean_distance:
    class right:
        def by_loops(weights):
            n = len(weights)
            rows = [sum(weights[i, j] * abs(i - j) for j in range(n)) for i in range(n)]
            return torch.stack(rows)

        def by_einsum(weights):
            places = torch.arange(len(weights), dtype=weights.dtype)
            distances = (places.unsqueeze(1) - places.unsqueeze(0)).abs()
            return torch.einsum("ij,ij->i", weights, distances)

    class wrong:
        def with_sign(weights):
            places = torch.arange(len(weights))
            return (weights * (places[:, None] - places)).sum(dim=-1)

        def by_column(weights):
            places = torch.arange(len(weights))
            return (weights * (places[:, None] - places).abs()).sum(dim=0)

        def of_the_mean_place(weights):
            places = torch.arange(len(weights))
            return ((weights * places).sum(dim=-1) - places).abs()

        def to_the_strongest(weights):
            places = torch.arange(len(weights))
            return (weights.argmax(dim=-1) - places).abs().float()

        def unweighted(weights):
            places = torch.arange(len(weights))
            seen = (weights > 0).float()
            return (seen * (places[:, None] - places).abs()).mean(dim=-1)

        def squared(weights):
            places = torch.arange(len(weights))
            return (weights * (places[:, None] - places) ** 2).sum(dim=-1)

        def of_the_whole_map(weights):
            places = torch.arange(len(weights))
            return (weights * (places[:, None] - places).abs()).sum()


class in_order:
    class right:
        def by_writing(weights, order):
            result = torch.empty_like(weights)
            for row, i in enumerate(order):
                for column, j in enumerate(order):
                    result[i, j] = weights[row, column]
            return result

        def by_index(weights, order):
            back = [order.index(place) for place in range(len(order))]
            return weights[back, :][:, back]

        def by_a_permutation_matrix(weights, order):
            p = torch.eye(len(order))[order]
            return p.T @ weights @ p

    class wrong:
        def shuffled_again(weights, order):
            return weights[order][:, order]

        def rows_alone(weights, order):
            return weights[torch.tensor(order).argsort()]

        def columns_alone(weights, order):
            return weights[:, torch.tensor(order).argsort()]

        def as_it_is(weights, order):
            return weights

        def transposed(weights, order):
            back = torch.tensor(order).argsort()
            return weights[back][:, back].T

        def diagonal_alone(weights, order):
            back = torch.tensor(order).argsort()
            return weights[back, back]

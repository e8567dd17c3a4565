"""Answers to the exercises of `tools/explorer`."""
# ruff: noqa: F821  the names are the chapter's


class head_for:
    class right:
        def by_a_loop(weights, i, j):
            best, largest = 1, -1.0
            for head, table in enumerate(weights.tolist(), start=1):
                if table[i][j] > largest:
                    best, largest = head, table[i][j]
            return best

        def as_a_tensor(weights, i, j):
            return weights[:, i, j].argmax() + 1

    class wrong:
        def counts_from_zero(weights, i, j):
            return weights[:, i, j].argmax().item()

        def turned_round(weights, i, j):
            return weights[:, j, i].argmax().item() + 1

        def the_column(weights, i, j):
            return weights.sum(dim=1)[:, j].argmax().item() + 1

        def the_largest_of_the_row(weights, i, j):
            return weights[:, i].amax(dim=-1).argmax().item() + 1

        def the_weight(weights, i, j):
            return weights[:, i, j].max().item()

        def the_first_that_looks_there_most(weights, i, j):
            looks = weights[:, i].argmax(dim=-1) == j
            return looks.int().argmax().item() + 1


class looked_at:
    class right:
        def by_topk(weights, queries, j):
            column = weights[:, j]
            top = column.topk(3)
            said = [
                (queries[place], weight)
                for place, weight in zip(top.indices.tolist(), top.values, strict=True)
            ]
            return [*said, ("others", column.sum() - top.values.sum())]

        def in_lists(weights, queries, j):
            column = weights[:, j].double()
            order = column.argsort(descending=True)
            said = [[queries[place], column[place].item()] for place in order[:3]]
            return [*said, ["others", column[order[3:]].sum().item()]]

    class wrong:
        def the_row(weights, queries, j):
            pairs = list(zip(queries, weights[j].tolist(), strict=False))
            pairs.sort(key=lambda pair: pair[1], reverse=True)
            return [*pairs[:3], ("others", sum(weight for _, weight in pairs[3:]))]

        def smallest_first(weights, queries, j):
            pairs = sorted(
                zip(queries, weights[:, j].tolist(), strict=True), key=lambda p: p[1]
            )
            return [*pairs[:3], ("others", sum(weight for _, weight in pairs[3:]))]

        def in_the_order_of_the_text(weights, queries, j):
            pairs = list(zip(queries, weights[:, j].tolist(), strict=True))
            return [*pairs[:3], ("others", sum(weight for _, weight in pairs[3:]))]

        def what_is_left_of_one(weights, queries, j):
            pairs = list(zip(queries, weights[:, j].tolist(), strict=True))
            pairs.sort(key=lambda pair: pair[1], reverse=True)
            return [*pairs[:3], ("others", 1 - sum(weight for _, weight in pairs[:3]))]

        def others_with_the_three(weights, queries, j):
            pairs = list(zip(queries, weights[:, j].tolist(), strict=True))
            pairs.sort(key=lambda pair: pair[1], reverse=True)
            return [*pairs[:3], ("others", sum(weight for _, weight in pairs))]

        def without_the_others(weights, queries, j):
            pairs = list(zip(queries, weights[:, j].tolist(), strict=True))
            pairs.sort(key=lambda pair: pair[1], reverse=True)
            return pairs[:3]

        def how_many_others(weights, queries, j):
            pairs = list(zip(queries, weights[:, j].tolist(), strict=True))
            pairs.sort(key=lambda pair: pair[1], reverse=True)
            return [*pairs[:3], ("others", len(pairs) - 3)]

        def by_name(weights, queries, j):
            shares = dict(zip(queries, weights[:, j].tolist(), strict=True))
            best = sorted(shares, key=shares.get, reverse=True)
            first = {name: shares[name] for name in best[:3]}
            return first | {"others": sum(shares[name] for name in best[3:])}


class most_alike:
    class right:
        def by_a_loop(weights):
            best, pair = -1.0, None
            for a in range(len(weights)):
                for b in range(a + 1, len(weights)):
                    shared = torch.minimum(weights[a], weights[b]).sum(dim=-1).mean()
                    if shared > best:
                        best, pair = shared, (a + 1, b + 1)
            return pair

        def by_distance(weights):
            """What two rows don't share is half of the sum of their differences."""
            from itertools import combinations

            pairs = list(combinations(range(len(weights)), 2))
            apart = [(weights[a] - weights[b]).abs().sum().item() for a, b in pairs]
            a, b = pairs[apart.index(min(apart))]
            return [b + 1, a + 1]

    class wrong:
        def counts_from_zero(weights):
            from itertools import combinations

            def shared(pair):
                return torch.minimum(weights[pair[0]], weights[pair[1]]).sum().item()

            return max(combinations(range(len(weights)), 2), key=shared)

        def with_itself(weights):
            shared = torch.minimum(weights[:, None], weights).sum(dim=(-2, -1))
            a, b = divmod(shared.argmax().item(), len(weights))
            return a + 1, b + 1

        def the_least_alike(weights):
            from itertools import combinations

            def shared(pair):
                a, b = (weights[n - 1] for n in pair)
                return torch.minimum(a, b).sum().item()

            return min(combinations(range(1, len(weights) + 1), 2), key=shared)

        def by_the_products(weights):
            """A product is large where both are sure, not where they are alike."""
            from itertools import combinations

            def product(pair):
                a, b = (weights[n - 1] for n in pair)
                return (a * b).sum().item()

            return max(combinations(range(1, len(weights) + 1), 2), key=product)

        def by_the_columns(weights):
            """Whom they look at in total says nothing of who looks."""
            from itertools import combinations

            totals = weights.sum(dim=1)

            def shared(pair):
                a, b = (totals[n - 1] for n in pair)
                return torch.minimum(a, b).sum().item()

            return max(combinations(range(1, len(weights) + 1), 2), key=shared)

        def by_the_strongest_keys(weights):
            from itertools import combinations

            best = weights.argmax(dim=-1)

            def agree(pair):
                a, b = (best[n - 1] for n in pair)
                return (a == b).sum().item()

            return max(combinations(range(1, len(weights) + 1), 2), key=agree)

        def neighbours_alone(weights):
            shared = torch.minimum(weights[:-1], weights[1:]).sum(dim=(-2, -1))
            first = shared.argmax().item() + 1
            return first, first + 1

        def by_squares(weights):
            apart = (weights[:, None] - weights).square().sum(dim=(-1, -2))
            a, b = divmod(apart.fill_diagonal_(torch.inf).argmin().item(), len(weights))
            return a + 1, b + 1

        def by_angle(weights):
            maps = torch.nn.functional.normalize(weights.flatten(1), dim=-1)
            a, b = divmod((maps @ maps.T).triu(1).argmax().item(), len(weights))
            return a + 1, b + 1

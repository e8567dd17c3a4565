"""Answers to the exercise of `tools/workbench`."""
# ruff: noqa: F821  the names are the chapter's


class mixed:
    class right:
        def by_hand(appetites, values):
            total, whole = 0, sum(appetites)
            for appetite, value in zip(appetites, values, strict=True):
                total += appetite / whole * value
            return total

        def divided_at_the_end(appetites, values):
            pairs = zip(appetites, values, strict=True)
            return sum(a * v for a, v in pairs) / sum(appetites)

        def by_torch(appetites, values):
            shares = torch.tensor(fair_shares(appetites), dtype=torch.double)
            return shares @ torch.tensor(values, dtype=torch.double)

    class wrong:
        def never_divided(appetites, values):
            return sum(a * v for a, v in zip(appetites, values, strict=True))

        def equally(appetites, values):
            shares = equal_shares(appetites)
            return sum(s * v for s, v in zip(shares, values, strict=True))

        def of_the_hungriest(appetites, values):
            return values[appetites.index(max(appetites))]

        def turned_round(appetites, values):
            shares = fair_shares(values)
            return sum(s * a for s, a in zip(shares, appetites, strict=True))

        def divided_by_their_number(appetites, values):
            pairs = zip(appetites, values, strict=True)
            return sum(a * v for a, v in pairs) / len(values)

        def the_largest_share(appetites, values):
            return max(fair_shares(appetites))

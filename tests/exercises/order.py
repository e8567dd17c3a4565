"""Answers to the exercises of `position/order`."""
# ruff: noqa: F821  the names are the chapter's


class mean_so_far:
    class right:
        def by_weights(x):
            alike = torch.zeros(len(x), 1)
            return attention_weights(alike, alike, causal=True) @ x

        def by_running_sums(x):
            return x.cumsum(dim=0) / torch.arange(1, len(x) + 1)[:, None]

        def by_a_scale_of_zero(x):
            weights = attention_weights(x, x, causal=True, scale=0.0)
            return weights @ x

        def in_place(x):
            return x.cumsum_(dim=0).div_(torch.arange(1, len(x) + 1)[:, None])

    class wrong:
        def of_all(x):
            alike = torch.zeros_like(x)
            return attend(alike, alike, x)

        def of_itself(x):
            return attend(x, x, x, causal=True)

        def sums(x):
            return torch.ones(len(x), len(x)).tril() @ x

        def of_those_before(x):
            before = torch.ones(len(x), len(x), dtype=torch.bool).tril(-1)
            return attend(torch.zeros_like(x), torch.zeros_like(x), x, before)

        def of_those_after(x):
            later = torch.ones(len(x), len(x), dtype=torch.bool).triu()
            return attend(torch.zeros_like(x), torch.zeros_like(x), x, later)


class occurrences:
    class right:
        def by_two_calls(text, letter):
            def share(what):
                values = (text == what).float()[:, None]
                alike = torch.zeros_like(values)
                return attend(alike, alike, values, causal=True)

            return share(letter) / share(text[0])

        def by_weights(text, letter):
            alike = torch.zeros(len(text), 1)
            weights = attention_weights(alike, alike, causal=True)
            return (weights @ (text == letter).float()) / weights[:, 0]

        def by_running_sums(text, letter):
            return (text == letter).cumsum(dim=0)

    class wrong:
        def shares(text, letter):
            values = (text == letter).float()[:, None]
            alike = torch.zeros_like(values)
            return attend(alike, alike, values, causal=True)

        def the_future_too(text, letter):
            alike = torch.zeros(len(text), 1)
            weights = attention_weights(alike, alike)
            return (weights @ (text == letter).float()) / weights[:, 0]

        def by_the_length(text, letter):
            values = (text == letter).float()[:, None]
            alike = torch.zeros_like(values)
            return len(text) * attend(alike, alike, values, causal=True)

        def the_start(text, letter):
            alike = torch.zeros(len(text), 1)
            weights = attention_weights(alike, alike, causal=True)
            return (weights @ (text == text[0]).float()) / weights[:, 0]

        def the_other_way_up(text, letter):
            alike = torch.zeros(len(text), 1)
            weights = attention_weights(alike, alike, causal=True)
            return weights[:, 0] / (weights @ (text == letter).float())


class kind:
    class right:
        def by_rolling(layer):
            x = torch.randn(6, 4)
            order = torch.tensor([4, 0, 1, 2, 3, 5])
            change = (layer(x[order]) - layer(x)[order]).abs()
            if change.max() < 1e-4:
                return "blind"
            return "past" if change[5].max() < 1e-4 else "order"

        def by_all_orders(layer):
            from itertools import permutations

            x, last = torch.randn(4, 4), True
            blind = True
            for three in permutations(range(3)):
                order = torch.tensor([*three, 3])
                near = torch.isclose(layer(x[order]), layer(x)[order], atol=1e-5)
                blind, last = blind and near.all(), last and near[3].all()
            return "blind" if blind else "past" if last else "order"

    class wrong:
        def compares_places(layer):
            x, order = torch.randn(5, 4), torch.tensor([2, 0, 3, 1, 4])
            if torch.allclose(layer(x[order]), layer(x), atol=1e-5):
                return "blind"
            same = torch.allclose(layer(x[order])[4], layer(x)[4], atol=1e-5)
            return "past" if same else "order"

        def moves_the_last(layer):
            x, order = torch.randn(5, 4), torch.tensor([4, 3, 2, 1, 0])
            if torch.allclose(layer(x[order]), layer(x)[order], atol=1e-5):
                return "blind"
            same = torch.allclose(layer(x[order])[4], layer(x)[4], atol=1e-5)
            return "past" if same else "order"

        def the_last_row_alone(layer):
            x, order = torch.randn(5, 4), torch.tensor([2, 0, 3, 1, 4])
            same = torch.allclose(layer(x[order])[4], layer(x)[4], atol=1e-5)
            return "blind" if same else "order"

        def shuffles_nothing(layer):
            x = torch.randn(5, 4)
            return "blind" if torch.allclose(layer(x), layer(x)) else "order"

        def looks_for_a_leak(layer):
            x = torch.randn(5, 4)
            changed = torch.cat([x[:4], torch.randn(1, 4)])
            same = torch.allclose(layer(x)[:4], layer(changed)[:4], atol=1e-5)
            return "past" if same else "blind"

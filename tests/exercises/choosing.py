"""Answers to the exercises of `speed/choosing`."""
# ruff: noqa: F821  the names are the chapter's


class weights_by_identity:
    class right:
        def by_the_package(form, queries, keys):
            import attention

            values = torch.zeros_like(keys)
            return attention.weights_of(form, queries, keys, values)

        def column_by_column(form, queries, keys):
            columns = []
            for j in range(keys.shape[-2]):
                values = torch.zeros(*keys.shape[:-1], 1)
                values[..., j, :] = 1
                columns.append(form(queries, keys, values))
            return torch.cat(columns, dim=-1)

    class wrong:
        def of_another_form(form, queries, keys):
            return attention_weights(queries, keys)

        def the_context(form, queries, keys):
            return form(queries, keys, keys)

        def ones(form, queries, keys):
            return form(queries, keys, torch.ones(*keys.shape[:-1], keys.shape[-2]))

        def transposed(form, queries, keys):
            one = torch.eye(keys.shape[-2]).expand(*keys.shape[:-2], -1, -1)
            return form(queries, keys, one).mT

        def as_wide_as_the_keys(form, queries, keys):
            one = torch.eye(keys.shape[-2], keys.shape[-1])
            return form(queries, keys, one.expand(*keys.shape[:-2], -1, -1))

        def of_one_head(form, queries, keys):
            one = torch.eye(keys.shape[-2])[None, None]
            return form(queries[:, :1], keys[:, :1], one)


class longest:
    class right:
        def by_logarithms(once, twice, length, budget):
            from math import exp, log

            doublings = log(budget / once) / log(twice / once)
            return int(exp(log(length) + doublings * log(2)))

        def by_search(once, twice, length, budget):
            power = log2(twice / once)
            low, high = 1, 10**9
            while high - low > 1:
                middle = (low + high) // 2
                fits = once * (middle / length) ** power <= budget
                low, high = (middle, high) if fits else (low, middle)
            return low

        def in_one_line(once, twice, length, budget):
            return int(length * (budget / once) ** (1 / log2(twice / once)))

    class wrong:
        def as_if_linear(once, twice, length, budget):
            return int(length * budget / once)

        def as_if_quadratic(once, twice, length, budget):
            return int(length * (budget / once) ** 0.5)

        def power_turned_round(once, twice, length, budget):
            return int(length * (budget / once) ** log2(twice / once))

        def a_line_through_both(once, twice, length, budget):
            return int(length + length * (budget - once) / (twice - once))

        def only_doublings(once, twice, length, budget):
            while once * (twice / once) <= budget:
                once, twice, length = twice, twice * twice / once, 2 * length
            return length

        def to_the_nearest(once, twice, length, budget):
            return round(length * (budget / once) ** (1 / log2(twice / once)))

        def rounded_up(once, twice, length, budget):
            power = log2(twice / once)
            return int(length * (budget / once) ** (1 / power)) + 1


class any_width:
    class right:
        def narrow_or_wide(queries, keys, values):
            width, value_dim = keys.shape[-1], values.shape[-1]
            more = value_dim - width
            if more > 0:
                zeros = torch.zeros(*keys.shape[:-1], more)
                queries, keys = (torch.cat([t, zeros], -1) for t in (queries, keys))
            if more < 0:
                zeros = torch.zeros(*values.shape[:-1], -more)
                values = torch.cat([values, zeros], dim=-1)
            context = attend(queries, keys, values, scale=width**-0.5)
            return context[..., :value_dim]

        def scaled_before(queries, keys, values):
            pad = torch.nn.functional.pad
            width, value_dim = queries.shape[-1], values.shape[-1]
            widest = max(width, value_dim)
            queries = queries * (widest / width) ** 0.5
            padded = (
                pad(t, (0, widest - t.shape[-1])) for t in (queries, keys, values)
            )
            return attend(*padded)[..., :value_dim]

    class wrong:
        def in_steps(queries, keys, values):
            return attend(queries, keys, values)

        def by_hand(queries, keys, values):
            return attention_weights(queries, keys) @ values

        def default_scale(queries, keys, values):
            pad = torch.nn.functional.pad
            widest = max(queries.shape[-1], values.shape[-1])
            padded = (
                pad(t, (0, widest - t.shape[-1])) for t in (queries, keys, values)
            )
            return attend(*padded)[..., : values.shape[-1]]

        def left_wide(queries, keys, values):
            pad = torch.nn.functional.pad
            width = queries.shape[-1]
            widest = max(width, values.shape[-1])
            padded = (
                pad(t, (0, widest - t.shape[-1])) for t in (queries, keys, values)
            )
            return attend(*padded, scale=width**-0.5)

        def narrow_alone(queries, keys, values):
            width, value_dim = keys.shape[-1], values.shape[-1]
            if value_dim > width:
                return attention_weights(queries, keys) @ values
            values = torch.nn.functional.pad(values, (0, width - value_dim))
            return attend(queries, keys, values)[..., :value_dim]

        def scale_of_the_values(queries, keys, values):
            pad = torch.nn.functional.pad
            value_dim = values.shape[-1]
            widest = max(queries.shape[-1], value_dim)
            padded = (
                pad(t, (0, widest - t.shape[-1])) for t in (queries, keys, values)
            )
            return attend(*padded, scale=value_dim**-0.5)[..., :value_dim]

"""Answers to the exercises of `reading/translator`.

They take longest: the third check compares with the loss of each of 64 heads, so the
chapter reads its sentences 65 times before.
"""
# ruff: noqa: F821  the names are the chapter's


class keys_in_view:
    class right:
        def in_nats(weights):
            return torch.special.entr(weights).sum(dim=-1).exp()

        def by_where(weights):
            logs = torch.where(weights > 0, weights, 1.0).log2()
            return torch.exp2(-(weights * logs).sum(dim=-1))

    class wrong:
        def how_many_are_not_zero(weights):
            return (weights > 0).sum(dim=-1).to(weights)

        def two_bases(weights):
            return attention_entropy(weights).exp()

        def entropy_alone(weights):
            return attention_entropy(weights)

        def by_squares(weights):
            return 1 / weights.square().sum(dim=-1)

        def averaged(weights):
            return (2 ** attention_entropy(weights)).mean()

        def by_the_largest(weights):
            return 1 / weights.amax(dim=-1)


class by_word:
    class right:
        def by_a_loop(weights, rows, columns):
            table = weights.new_zeros(int(rows.max()) + 1, int(columns.max()) + 1)
            for i in range(table.shape[0]):
                for j in range(table.shape[1]):
                    cells = weights[rows == i][:, columns == j]
                    table[i, j] = cells.sum(dim=1).mean()
            return table

        def by_index(weights, rows, columns):
            height, width = rows.max() + 1, columns.max() + 1
            summed = weights.new_zeros(len(weights), width)
            summed = summed.index_add(1, columns, weights)
            table = weights.new_zeros(height, width).index_add(0, rows, summed)
            return table / rows.bincount()[:, None]

    class wrong:
        def sums_both(weights, rows, columns):
            rows, columns = F.one_hot(rows).to(weights), F.one_hot(columns).to(weights)
            return rows.T @ weights @ columns

        def averages_both(weights, rows, columns):
            rows, columns = F.one_hot(rows).to(weights), F.one_hot(columns).to(weights)
            return (rows / rows.sum(dim=0)).T @ weights @ (columns / columns.sum(dim=0))

        def the_wrong_one_of_both(weights, rows, columns):
            rows, columns = F.one_hot(rows).to(weights), F.one_hot(columns).to(weights)
            return rows.T @ weights @ (columns / columns.sum(dim=0))

        def halves_the_first_word(weights, rows, columns):
            rows, columns = F.one_hot(rows).to(weights), F.one_hot(columns).to(weights)
            table = rows.T @ weights @ columns
            table[0] /= 2
            return table

        def the_first_piece(weights, rows, columns):
            first = [int((rows == i).int().argmax()) for i in range(rows.max() + 1)]
            return weights[first] @ F.one_hot(columns).to(weights)

        def transposed(weights, rows, columns):
            rows, columns = F.one_hot(rows).to(weights), F.one_hot(columns).to(weights)
            return ((rows / rows.sum(dim=0)).T @ weights @ columns).T


class looks_back:
    class right:
        def by_slices(head):
            def form(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values, mask, **options).clone()
                context[:, head, 0] = 0
                context[:, head, 1:] = values[:, head, :-1]
                return context

            return form

        def by_weights(head):
            def form(queries, keys, values, mask=None, **options):
                context = list(attend(queries, keys, values, mask, **options).unbind(1))
                back = torch.ones(keys.shape[-2] - 1).diag(-1).to(values)
                context[head] = back @ values[:, head]
                return torch.stack(context, dim=1)

            return form

    class wrong:
        def the_next_piece(head):
            def form(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values, mask, **options)
                context[..., head, :, :] = F.pad(values[..., head, 1:, :], (0, 0, 0, 1))
                return context

            return form

        def the_last_for_the_first(head):
            def form(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values, mask, **options)
                context[..., head, :, :] = values[..., head, :, :].roll(1, -2)
                return context

            return form

        def every_head(head):
            def form(queries, keys, values, mask=None, **options):
                return F.pad(values[..., :-1, :], (0, 0, 1, 0))

            return form

        def the_next_head(head):
            def form(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values, mask, **options)
                back = F.pad(values[..., head, :-1, :], (0, 0, 1, 0))
                context[..., (head + 1) % 8, :, :] = back
                return context

            return form

        def without_the_mask(head):
            def form(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values)
                context[..., head, :, :] = F.pad(
                    values[..., head, :-1, :], (0, 0, 1, 0)
                )
                return context

            return form

        def itself(head):
            def form(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values, mask, **options)
                context[..., head, :, :] = values[..., head, :, :]
                return context

            return form

        def head_five_always(head):
            def attend_back(queries, keys, values, mask=None, **options):
                context = attend(queries, keys, values, mask, **options)
                context[:, 5] = F.pad(values[:, 5, :-1], (0, 0, 1, 0))
                return context

            return attend_back

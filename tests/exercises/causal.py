"""Answers to the exercises of `core/causal`."""
# ruff: noqa: F821  the names are the chapter's


class nearsighted_mask:
    class right:
        def by_distance(length):
            place = torch.arange(length)
            back = place[:, None] - place
            return (back == 0) | (back == 1)

        def by_two_diagonals(length):
            one = torch.ones(length, length)
            return (one.tril() - one.tril(-2)).bool()

    class wrong:
        def sees_both_neighbours(length):
            return torch.ones(length, length, dtype=torch.bool).triu(-1).tril(1)

        def sees_one_too_many(length):
            return causal_mask(length).triu(-2)

        def sees_only_itself(length):
            return causal_mask(length).triu(0)

        def numbers(length):
            return torch.ones(length, length).tril().triu(-1)

        def one_length(length):
            table = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
            return torch.tensor(table, dtype=torch.bool)

        def true_is_hidden(length):
            return ~causal_mask(length).triu(-1)


class careless:
    class right:
        def by_hand(x):
            queries, keys = module.W_query(x), module.W_key(x)
            weights = softmax(queries @ keys.T / 2**0.5)
            return weights.tril() @ module.W_value(x)

        def by_filling(x):
            future = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device)
            weights = module.attention_weights(x).masked_fill(future.triu(1), 0.0)
            return weights @ module.W_value(x)

        def in_float64(x):
            from copy import deepcopy

            wide, x = deepcopy(module).double(), x.double()
            return wide.attention_weights(x).tril() @ wide.W_value(x)

    class wrong:
        def shares_again(x):
            cut = module.attention_weights(x) * triangle
            return cut / cut.sum(dim=-1, keepdim=True) @ module.W_value(x)

        def hides_before(x):
            return hidden_attention(x)

        def hides_nothing(x):
            return open_attention(x)

        def hides_the_past(x):
            return module.attention_weights(x).triu() @ module.W_value(x)

        def weights_alone(x):
            return module.attention_weights(x) * triangle

        def looks_at_one_sentence(x):
            return cut @ values

        def averages_the_values_of_the_chapter(x):
            return module.attention_weights(x).tril() @ values


class drop_scores:
    class right:
        def after_softmax(scores, p):
            """A share of what is left is the softmax of what is left."""
            weights = softmax(scores / 2**0.5).tril()
            keep = torch.rand_like(scores) >= p
            keep.fill_diagonal_(True)
            weights = weights * keep
            return weights / weights.sum(dim=-1, keepdim=True)

        def row_by_row(scores, p):
            rows = torch.zeros_like(scores)
            for i in range(len(scores)):
                row = scores[i, : i + 1].clone() / 2**0.5
                lost = torch.rand(i) < p
                row[:i][lost] = -torch.inf
                rows[i, : i + 1] = row.softmax(dim=0)
            return rows

        def in_place(scores, p):
            lost = (torch.rand_like(scores) < p).fill_diagonal_(False)
            scores /= 2**0.5
            scores[lost | ~causal_mask(len(scores))] = -torch.inf
            return softmax(scores)

    class wrong:
        def drops_nothing(scores, p):
            hidden = ~causal_mask(len(scores))
            return softmax(scores.masked_fill(hidden, -torch.inf) / 2**0.5)

        def drops_weights(scores, p):
            hidden = ~causal_mask(len(scores))
            weights = softmax(scores.masked_fill(hidden, -torch.inf) / 2**0.5)
            return nn.Dropout(p)(weights)

        def loses_the_diagonal(scores, p):
            keep = (torch.rand_like(scores) >= p) & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def forgets_to_scale(scores, p):
            keep = (torch.rand_like(scores) >= p) | torch.eye(len(scores)).bool()
            keep = keep & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf))

        def keeps_with_p(scores, p):
            keep = (torch.rand_like(scores) < p) | torch.eye(len(scores)).bool()
            keep = keep & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def zero_is_not_hidden(scores, p):
            keep = (torch.rand_like(scores) >= p) | torch.eye(len(scores)).bool()
            dropped = (scores * keep).masked_fill(~causal_mask(len(scores)), -torch.inf)
            return softmax(dropped / 2**0.5)

        def sees_the_future(scores, p):
            keep = (torch.rand_like(scores) >= p) | torch.eye(len(scores)).bool()
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def keeps_only_the_diagonal(scores, p):
            return torch.eye(len(scores)) if p else causal_weights.cpu()

        def one_draw_for_each_key(scores, p):
            lost = torch.arange(len(scores)) % 4 < 4 * p
            keep = ~lost[torch.randperm(len(scores))].expand(scores.shape)
            keep = (keep | torch.eye(len(scores)).bool()) & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def whole_rows(scores, p):
            lost = torch.arange(len(scores)) % 4 < 4 * p
            keep = ~lost[:, None].expand(scores.shape)
            keep = (keep | torch.eye(len(scores)).bool()) & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def whole_diagonals(scores, p):
            place = torch.arange(len(scores))
            lost = (place[:, None] - place) % 4 < 4 * p
            keep = (~lost | torch.eye(len(scores)).bool()) & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def every_fourth_key(scores, p):
            keep = torch.arange(len(scores)).expand(scores.shape) % 4 >= 4 * p
            keep = (keep | torch.eye(len(scores)).bool()) & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

        def the_same_at_each_call(scores, p):
            torch.manual_seed(5)
            keep = (torch.rand_like(scores) >= p) | torch.eye(len(scores)).bool()
            keep = keep & causal_mask(len(scores))
            return softmax(scores.masked_fill(~keep, -torch.inf) / 2**0.5)

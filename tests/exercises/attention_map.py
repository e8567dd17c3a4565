"""Answers to the exercises of `idea/attention_map`."""
# ruff: noqa: F821  the names are the chapter's


class most_watched:
    class right:
        def by_sorting(weights, tokens):
            totals = zip(weights.sum(dim=0).tolist(), tokens, strict=True)
            return max(totals)[1]

        def by_the_mean(weights, tokens):
            best = weights.mean(dim=-2).argmax().item()
            return list(tokens)[best]

    class wrong:
        def the_largest_weight(weights, tokens):
            return tokens[weights.amax(dim=0).argmax()]

        def of_the_rows(weights, tokens):
            return tokens[weights.sum(dim=1).argmax()]

        def of_the_first_row(weights, tokens):
            return tokens[weights[0].argmax()]

        def of_the_last_row(weights, tokens):
            return tokens[weights[-1].argmax()]

        def by_itself(weights, tokens):
            return tokens[weights.diagonal().argmax()]

        def the_place(weights, tokens):
            return weights.sum(dim=0).argmax()

        def the_least(weights, tokens):
            return tokens[weights.sum(dim=0).argmin()]

        def who_is_seen_by_most(weights, tokens):
            return tokens[(weights > 0).sum(dim=0).argmax()]

        def the_favourite_of_most(weights, tokens):
            return tokens[weights.argmax(dim=1).mode().values]

        def the_least_weight_of_each(weights, tokens):
            return tokens[weights.amin(dim=0).argmax()]

        def the_middle_weight_of_each(weights, tokens):
            return tokens[weights.median(dim=0).values.argmax()]

        def by_squares(weights, tokens):
            return tokens[weights.square().sum(dim=0).argmax()]

        def by_the_others_alone(weights, tokens):
            return tokens[(weights - weights.diagonal().diag()).sum(dim=0).argmax()]

        def takes_weights_for_scores(weights, tokens):
            return tokens[by_exp(weights).sum(dim=0).argmax()]


class with_temperature:
    class right:
        def by_torch(scores, temperature):
            return torch.softmax(scores / temperature, dim=-1)

        def by_powers(scores, temperature):
            """The weights of a lower temperature are powers of the weights."""
            powers = by_exp(scores) ** (1 / temperature)
            return powers / powers.sum(dim=-1, keepdim=True)

        def in_place(scores, temperature):
            scores /= temperature
            return by_exp(scores)

        def in_float64(scores, temperature):
            return by_exp(scores.double() / temperature)

    class wrong:
        def after_softmax(scores, temperature):
            return by_exp(scores) / temperature

        def multiplied(scores, temperature):
            return by_exp(scores * temperature)

        def its_square(scores, temperature):
            return by_exp(scores / temperature**2)

        def its_root(scores, temperature):
            return by_exp(scores / temperature**0.5)

        def over_all_rows(scores, temperature):
            return (scores / temperature).exp() / (scores / temperature).exp().sum()

        def over_the_columns(scores, temperature):
            return torch.softmax(scores / temperature, dim=0)

        def by_the_sum(scores, temperature):
            return by_sum(scores / temperature)

        def without_it(scores, temperature):
            return by_exp(scores)

        def cold_or_hot(scores, temperature):
            if temperature == 1:
                return by_exp(scores)
            best = (scores == scores.amax(dim=-1, keepdim=True)).float()
            even = torch.ones_like(scores) / scores.shape[-1]
            return best if temperature < 1 else even

        def of_the_first_row(scores, temperature):
            return by_exp(scores[0] / temperature)[None]


class effective_number:
    class right:
        def by_where(weights):
            logs = torch.where(weights > 0, weights, 1.0).log()
            return torch.exp(-(weights * logs).sum(dim=-1))

        def in_bits(weights):
            bits = -torch.xlogy(weights, weights).sum(dim=-1) / torch.tensor(2.0).log()
            return 2**bits

    class wrong:
        def how_many_are_not_zero(weights):
            return (weights > 0).sum(dim=-1).float()

        def by_squares(weights):
            return 1 / weights.square().sum(dim=-1)

        def by_the_largest(weights):
            return 1 / weights.amax(dim=-1)

        def entropy_alone(weights):
            return torch.special.entr(weights).sum(dim=-1)

        def two_bases(weights):
            return 2 ** torch.special.entr(weights).sum(dim=-1)

        def not_a_number_at_zero(weights):
            return torch.exp(-(weights * weights.log()).sum(dim=-1))

        def of_the_whole_map(weights):
            return torch.special.entr(weights).sum().exp()

        def of_the_columns(weights):
            return torch.special.entr(weights).sum(dim=0).exp()

        def the_sign_lost(weights):
            return torch.xlogy(weights, weights).sum(dim=-1).exp()

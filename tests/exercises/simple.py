"""Answers to the exercises of `idea/simple`."""
# ruff: noqa: F821  the names are the chapter's


class cosine_scores:
    class right:
        def by_torch(x):
            return torch.nn.functional.cosine_similarity(x[:, None], x, dim=-1)

        def after_the_product(x):
            scores = x @ x.T
            norms = scores.diagonal().sqrt()
            return scores / (norms[:, None] * norms)

        def in_float64(x):
            unit = x.double() / x.double().square().sum(dim=1, keepdim=True).sqrt()
            return unit @ unit.T

    class wrong:
        def dot_products(x):
            return x @ x.T

        def one_side(x):
            return (x / x.norm(dim=-1, keepdim=True)) @ x.T

        def by_the_square(x):
            unit = x / x.square().sum(dim=-1, keepdim=True)
            return unit @ unit.T

        def of_the_columns(x):
            unit = x / x.norm(dim=0)
            return unit @ unit.T

        def of_the_whole(x):
            unit = x / x.norm()
            return unit @ unit.T

        def by_the_sum(x):
            unit = x / x.sum(dim=-1, keepdim=True)
            return unit @ unit.T

        def by_the_own_score(x):
            scores = x @ x.T
            return scores / scores.diagonal()

        def the_unit_vectors(x):
            return x / x.norm(dim=-1, keepdim=True)

        def with_a_batch_axis(x):
            unit = x / x.norm(dim=-1, keepdim=True)
            return (unit @ unit.T)[None]


class changes_softmax:
    class right:
        def by_the_largest_difference(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            before, after = softmax(scores), torch.softmax(function(scores), dim=-1)
            return (before - after).abs().max() > 1e-4

        def by_differences_of_scores(function):
            """Softmax sees the differences of scores, and all of them."""
            scores = torch.tensor([1.0, 2.0, 3.0])
            change = function(scores) - scores
            return not torch.allclose(change, change[0].expand(3))

    class wrong:
        def compares_scores(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            return not torch.allclose(function(scores), scores)

        def of_the_weights(function):
            weights = softmax(torch.tensor([1.0, 2.0, 3.0]))
            return not torch.allclose(function(weights), weights)

        def the_largest_alone(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            before, after = softmax(scores).max(), softmax(function(scores)).max()
            return not torch.allclose(before, after)

        def the_first_alone(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            before, after = softmax(scores)[0], softmax(function(scores))[0]
            return not torch.allclose(before, after)

        def the_second_alone(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            before, after = softmax(scores)[1], softmax(function(scores))[1]
            return not torch.allclose(before, after)

        def the_last_alone(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            before, after = softmax(scores)[2], softmax(function(scores))[2]
            return not torch.allclose(before, after)

        def the_order_alone(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            return not torch.equal(function(scores).argsort(), scores.argsort())

        def the_sum_of_the_scores(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            ratio = function(scores) / scores
            return torch.allclose(ratio, ratio[0].expand(3))

        def sharper_alone(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            return bool(softmax(function(scores)).max() > softmax(scores).max() + 0.01)

        def always(function):
            return True

        def turned_round(function):
            scores = torch.tensor([1.0, 2.0, 3.0])
            return torch.allclose(softmax(function(scores)), softmax(scores))


class sees_order:
    class right:
        def by_chance(attention, x):
            torch.manual_seed(5)
            for _ in range(30):
                order = torch.randperm(len(x)).to(x.device)
                if (attention(x)[order] - attention(x[order])).abs().max() > 1e-5:
                    return True
            return False

        def by_pairs(attention, x):
            """Exchanges of two tokens make up every order."""
            for i in range(len(x)):
                for j in range(i):
                    order = list(range(len(x)))
                    order[i], order[j] = j, i
                    if not torch.allclose(attention(x)[order], attention(x[order])):
                        return True
            return False

        def by_a_swap_and_a_turn(attention, x):
            """Those two make up every order."""
            swapped = [1, 0, *range(2, len(x))]
            turned = [*range(1, len(x)), 0]
            return not all(
                torch.allclose(attention(x[order]), attention(x)[order])
                for order in (swapped, turned)
            )

    class wrong:
        def one_swap(attention, x):
            order = [1, 0, 2, 3, 4, 5]
            return not torch.allclose(attention(x[order]), attention(x)[order])

        def the_ends_exchanged(attention, x):
            order = [5, 1, 2, 3, 4, 0]
            return not torch.allclose(attention(x[order]), attention(x)[order])

        def third_and_last_exchanged(attention, x):
            order = [0, 1, 5, 3, 4, 2]
            return not torch.allclose(attention(x[order]), attention(x)[order])

        def one_order_of_all(attention, x):
            order = [2, 0, 1, 4, 5, 3]
            return not torch.allclose(attention(x[order]), attention(x)[order])

        def forgets_to_permute_the_result(attention, x):
            order = torch.tensor([2, 0, 1, 4, 5, 3])
            return not torch.allclose(attention(x[order]), attention(x))

        def backwards_alone(attention, x):
            return not torch.allclose(attention(x.flip(0)), attention(x).flip(0))

        def rolled_alone(attention, x):
            return not torch.allclose(attention(x.roll(1, 0)), attention(x).roll(1, 0))

        def backwards_and_one_swap(attention, x):
            orders = [5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5]
            return any(
                not torch.allclose(attention(x[o]), attention(x)[o]) for o in orders
            )

        def backwards_and_the_middle_swapped(attention, x):
            orders = [5, 4, 3, 2, 1, 0], [0, 1, 3, 2, 4, 5]
            return any(
                not torch.allclose(attention(x[o]), attention(x)[o]) for o in orders
            )

        def rolled_and_backwards(attention, x):
            orders = [5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 0]
            return any(
                not torch.allclose(attention(x[o]), attention(x)[o]) for o in orders
            )

        def the_mean_alone(attention, x):
            order = torch.tensor([2, 0, 1, 4, 5, 3])
            return not torch.allclose(attention(x[order]).mean(0), attention(x).mean(0))

        def inverse_order(attention, x):
            order = torch.tensor([1, 2, 0, 4, 5, 3])
            return not torch.allclose(attention(x[order])[order], attention(x))

        def the_first_token_alone(attention, x):
            order = torch.tensor([0, 2, 1, 3, 4, 5])
            return not torch.allclose(attention(x[order])[0], attention(x)[0])

        def turned_round(attention, x):
            order = torch.tensor([2, 0, 1, 4, 5, 3])
            return torch.allclose(attention(x[order]), attention(x)[order])

"""Answers to the exercises of `core/masks`."""
# ruff: noqa: F821  the names are the chapter's


class window_mask:
    class right:
        def by_distance(length, window):
            place = torch.arange(length)
            back = place[:, None] - place
            return (back >= 0) & (back < window)

        def by_difference(length, window):
            return causal_mask(length) & ~causal_mask(length).tril(-window)

    class wrong:
        def one_too_many(length, window):
            return causal_mask(length).triu(-window)

        def the_future_too(length, window):
            place = torch.arange(length)
            return (place[:, None] - place).abs() < window

        def numbers(length, window):
            return torch.ones(length, length).tril().triu(1 - window)

        def whole_numbers(length, window):
            return causal_mask(length).triu(1 - window).int()

        def the_last_for_all(length, window):
            return causal_mask(length) & (torch.arange(length) >= length - window)

        def causal_alone(length, window):
            return causal_mask(length)

        def one_key_too_wide(length, window):
            return causal_mask(length + 1).triu(1 - window)[:length]

        def longer(length, window):
            return causal_mask(length + 2).triu(1 - window)

        def with_a_batch_axis(length, window):
            return causal_mask(length).triu(1 - window)[None]


class prefix_mask:
    class right:
        def by_place(length, prefix):
            place = torch.arange(length)
            return (place <= place[:, None]) | (place < prefix)[None]

        def by_slice(length, prefix):
            mask = causal_mask(length).clone()
            mask[:, :prefix] = True
            return mask

    class wrong:
        def forbids(length, prefix):
            return and_masks(causal_mask(length), torch.arange(length) < prefix)

        def numbers(length, prefix):
            mask = torch.ones(length, length).tril()
            mask[:, :prefix] = 1
            return mask

        def whole_numbers(length, prefix):
            return (causal_mask(length) | (torch.arange(length) < prefix)).int()

        def one_too_many(length, prefix):
            return causal_mask(length) | (torch.arange(length) <= prefix)

        def queries_of_the_prefix(length, prefix):
            return causal_mask(length) | (torch.arange(length) < prefix)[:, None]

        def causal_alone(length, prefix):
            return causal_mask(length)


class true_may_see:
    class right:
        def by_the_last(attention):
            torch.manual_seed(7)
            x, mask = torch.randn(3, 4), torch.ones(3, 3, dtype=torch.bool).tril()
            other = torch.cat([x[:2], 5 * torch.randn(1, 4)])
            moved = (attention(x, mask)[0] - attention(other, mask)[0]).abs().max()
            return bool(moved < 1e-5)

        def by_gradient(attention):
            torch.manual_seed(7)
            x = torch.randn(3, 4, requires_grad=True)
            mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
            (slope,) = torch.autograd.grad(attention(x, mask)[0].square().sum(), x)
            return not slope[1:].any()

    class wrong:
        def always(attention):
            return True

        def never(attention):
            return False

        def inverted(attention):
            torch.manual_seed(123)
            x, mask = torch.randn(3, 4), torch.eye(3, dtype=torch.bool)
            other = torch.cat([x[:1], torch.randn(2, 4)])
            return not torch.allclose(attention(x, mask)[0], attention(other, mask)[0])

        def knows_no_weights(attention):
            torch.manual_seed(123)
            x, mask = torch.randn(3, 4), torch.eye(3, dtype=torch.bool)
            return torch.allclose(attention(x, mask), x)

        def changes_itself(attention):
            torch.manual_seed(123)
            x, mask = torch.randn(3, 4), torch.eye(3, dtype=torch.bool)
            other = torch.cat([torch.randn(1, 4), x[1:]])
            return torch.allclose(attention(x, mask)[0], attention(other, mask)[0])

        def whether_numbers_come_if_all_is_true(attention):
            x, ones = torch.randn(3, 4), torch.ones(3, 3, dtype=torch.bool)
            context = attention(x, ones)
            return bool(context.isfinite().all() and (context != 0).any())

        def whether_none_come_if_all_is_false(attention):
            x, none = torch.randn(3, 4), torch.zeros(3, 3, dtype=torch.bool)
            context = attention(x, none)
            return bool(not context.isfinite().all() or (context == 0).all())

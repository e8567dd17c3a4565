"""Answers to the exercises of `speed/online_softmax`."""
# ruff: noqa: F821  the names are the chapter's


class rescalings:
    class right:
        def by_a_loop(scores):
            largest, found = scores[0].item(), 0
            for score in scores[1:].tolist():
                if score > largest:
                    largest, found = score, found + 1
            return found

        def as_a_tensor(scores):
            before = scores.cummax(dim=0).values[:-1]
            return (scores[1:] > before).sum()

    class wrong:
        def neighbours_alone(scores):
            return (scores.diff() > 0).sum().item()

        def counts_the_first(scores):
            return scores.cummax(dim=0).values.unique().numel()

        def counts_equal_ones(scores):
            return (scores[1:] >= scores.cummax(dim=0).values[:-1]).sum().item()

        def falls(scores):
            return (scores.cummin(dim=0).values.diff() < 0).sum().item()

        def place_of_the_largest(scores):
            return scores.argmax().item()

        def above_the_first(scores):
            return (scores > scores[0]).sum().item()

        def begins_at_zero(scores):
            largest, rises = 0, 0
            for score in scores:
                if score > largest:
                    largest, rises = score, rises + 1
            return rises - 1


class remove:
    class right:
        def by_powers(context, logsumexp, context_b, logsumexp_b):
            whole, part = logsumexp.double().exp(), logsumexp_b.double().exp()
            rest = whole[:, None] * context - part[:, None] * context_b
            left = whole - part
            return (rest / left[:, None]).float(), left.log().float()

        def by_log1p(context, logsumexp, context_b, logsumexp_b):
            share = (logsumexp_b - logsumexp).exp()
            found = logsumexp + torch.log1p(-share)
            ratio = (logsumexp - found).exp()[:, None]
            return ratio * context - (ratio - 1) * context_b, found

    class wrong:
        def shares_not_divided(context, logsumexp, context_b, logsumexp_b):
            share = (logsumexp_b - logsumexp).exp()
            rest = context - share[:, None] * context_b
            return rest, logsumexp + (1 - share).log()

        def plain_differences(context, logsumexp, context_b, logsumexp_b):
            return context - context_b, logsumexp - logsumexp_b

        def merged_again(context, logsumexp, context_b, logsumexp_b):
            return merge_states(context, logsumexp, context_b, logsumexp_b)

        def sign_of_the_logarithm(context, logsumexp, context_b, logsumexp_b):
            left = 1 - (logsumexp_b - logsumexp).exp()
            rest = context - (1 - left)[:, None] * context_b
            return rest / left[:, None], logsumexp - left.log()

        def logsumexp_left(context, logsumexp, context_b, logsumexp_b):
            left = 1 - (logsumexp_b - logsumexp).exp()
            rest = context - (1 - left)[:, None] * context_b
            return rest / left[:, None], logsumexp

        def exchanged(context, logsumexp, context_b, logsumexp_b):
            left = 1 - (logsumexp_b - logsumexp).exp()
            return (context_b - left[:, None] * context), logsumexp + left.log()

        def logsumexps_in_a_column(context, logsumexp, context_b, logsumexp_b):
            left = 1 - (logsumexp_b - logsumexp).exp()[:, None]
            rest = (context - (1 - left) * context_b) / left
            return rest, logsumexp[:, None] + left.log()


class merge_all:
    class right:
        def by_the_largest(contexts, logsumexps):
            largest = logsumexps.amax(dim=0).clamp(min=-1e30)
            powers = (logsumexps - largest).exp()
            total = powers.sum(dim=0)
            context = (powers[..., None] * contexts).sum(dim=0)
            return context / total.clamp(min=1e-30)[:, None], largest + total.log()

        def by_the_logsumexp(contexts, logsumexps):
            found = torch.logsumexp(logsumexps, 0)
            shares = (logsumexps - found).exp().nan_to_num()
            return (shares.unsqueeze(-1) * contexts).sum(0), found

    class wrong:
        def the_mean(contexts, logsumexps):
            return contexts.mean(dim=0), logsumexps.logsumexp(dim=0)

        def the_sum(contexts, logsumexps):
            return contexts.sum(dim=0), logsumexps.logsumexp(dim=0)

        def over_the_queries(contexts, logsumexps):
            shares = softmax(logsumexps)
            context = torch.einsum("pi,pie->ie", shares, contexts)
            return context, logsumexps.logsumexp(dim=0)

        def overflows(contexts, logsumexps):
            powers = logsumexps.exp()
            context = (powers[..., None] * contexts).sum(dim=0)
            return context / powers.sum(dim=0)[:, None], logsumexps.logsumexp(dim=0)

        def logsumexp_overflows(contexts, logsumexps):
            shares = softmax(logsumexps.T)
            context = torch.einsum("ip,pie->ie", shares, contexts)
            return context, logsumexps.exp().sum(0).log()

        def nan_for_no_keys(contexts, logsumexps):
            shares = torch.softmax(logsumexps, dim=0)
            context = (shares[..., None] * contexts).sum(dim=0)
            return context, logsumexps.logsumexp(dim=0)

        def the_mean_for_no_keys(contexts, logsumexps):
            finite = logsumexps.clamp(min=-1e30)  # all alike: they share evenly
            context = torch.einsum("pi,pie->ie", finite.softmax(dim=0), contexts)
            return context, logsumexps.logsumexp(dim=0)

        def zero_for_no_keys(contexts, logsumexps):
            shares = softmax(logsumexps.T)
            context = torch.einsum("ip,pie->ie", shares, contexts)
            return context, logsumexps.logsumexp(dim=0).nan_to_num(neginf=0.0)

        def logsumexps_added(contexts, logsumexps):
            shares = logsumexps.softmax(dim=0)
            return (shares[..., None] * contexts).sum(dim=0), logsumexps.sum(dim=0)

        def shares_of_the_logarithms(contexts, logsumexps):
            shares = logsumexps / logsumexps.sum(dim=0)
            context = (shares[..., None] * contexts).sum(dim=0)
            return context, logsumexps.logsumexp(dim=0)

        def the_largest_alone(contexts, logsumexps):
            best = logsumexps.argmax(dim=0)
            context = contexts[best, torch.arange(len(best))]
            return context, logsumexps.amax(dim=0)

        def largest_not_added(contexts, logsumexps):
            powers = (logsumexps - logsumexps.amax(dim=0)).exp()
            total = powers.sum(dim=0)
            context = (powers[..., None] * contexts).sum(dim=0) / total[:, None]
            return context, total.log()

        def empty_if_any_part_is(contexts, logsumexps):
            empty = logsumexps.isinf().any(0)
            shares = logsumexps.softmax(0).masked_fill(empty, 0)
            together = logsumexps.logsumexp(0).masked_fill(empty, -torch.inf)
            return torch.einsum("pi,pie->ie", shares, contexts), together

        def logsumexps_in_a_row(contexts, logsumexps):
            context = torch.einsum("ip,pie->ie", softmax(logsumexps.T), contexts)
            return context, logsumexps.logsumexp(dim=0, keepdim=True)

        def two_at_a_time(contexts, logsumexps):
            whole = contexts[0], logsumexps[0]
            for part in zip(contexts[1:], logsumexps[1:], strict=True):
                whole = merge_states(*whole, *part)
            return whole

"""Answers to the exercises of `training/small_gpt`."""
# ruff: noqa: F821  the names are the chapter's


class bits:
    class right:
        def by_the_other_logarithm(loss):
            return loss * math.log2(math.e)

        def by_the_probability(loss):
            return -math.log2(math.exp(-loss))

        def by_a_rounded_logarithm(loss):
            return loss / 0.6931

    class wrong:
        def multiplied_instead_of_divided(loss):
            return loss * math.log(2)

        def as_a_probability(loss):
            return math.exp(-loss)

        def as_a_perplexity(loss):
            return 2**loss

        def the_logarithm_of_the_loss(loss):
            return math.log2(loss)

        def by_ten(loss):
            return loss / math.log(10)


class gpt_size:
    class right:
        def part_by_part(vocabulary, d, num_blocks):
            attention, mlp, norms = 4 * d * d, 2 * d * 4 * d, 2 * d
            return vocabulary * d + num_blocks * (attention + mlp + norms) + d

        def by_a_loop(vocabulary, d, num_blocks):
            total = vocabulary * d + d
            for _ in range(num_blocks):
                total += 12 * d**2 + d + d
            return total

    class wrong:
        def not_tied(vocabulary, d, num_blocks):
            return 2 * vocabulary * d + num_blocks * (12 * d**2 + 2 * d) + d

        def without_norms(vocabulary, d, num_blocks):
            return vocabulary * d + num_blocks * 12 * d**2

        def without_the_last_norm(vocabulary, d, num_blocks):
            return vocabulary * d + num_blocks * (12 * d**2 + 2 * d)

        def norms_with_biases(vocabulary, d, num_blocks):
            return vocabulary * d + num_blocks * (12 * d**2 + 4 * d) + 2 * d

        def an_mlp_of_one_matrix(vocabulary, d, num_blocks):
            return vocabulary * d + num_blocks * (8 * d**2 + 2 * d) + d

        def learned_places(vocabulary, d, num_blocks):
            return (vocabulary + 128) * d + num_blocks * (12 * d**2 + 2 * d) + d


class top_chances:
    class right:
        def the_others_masked(logits, k, temperature):
            best = logits.topk(min(k, logits.shape[-1]), dim=-1).indices
            others = torch.ones_like(logits, dtype=torch.bool).scatter(-1, best, False)
            logits = logits.masked_fill(others, float("-inf"))
            return (logits / temperature).softmax(dim=-1)

        def divided_again(logits, k, temperature):
            chances = (logits / temperature).softmax(dim=-1)
            kept = chances.argsort(dim=-1, descending=True)[:, :k]
            mask = torch.zeros_like(chances).scatter(-1, kept, 1.0)
            chances = chances * mask
            return chances / chances.sum(dim=-1, keepdim=True)

    class wrong:
        def sums_to_less_than_one(logits, k, temperature):
            k = min(k, logits.shape[-1])
            chances = (logits / temperature).softmax(dim=-1)
            least = chances.topk(k, dim=-1).values[:, -1:]
            return chances.masked_fill(chances < least, 0.0)

        def all_that_tie(logits, k, temperature):
            k = min(k, logits.shape[-1])
            least = logits.topk(k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
            return (logits / temperature).softmax(dim=-1)

        def exponentials_that_overflow(logits, k, temperature):
            best = logits.topk(min(k, logits.shape[-1]), dim=-1)
            parts = (best.values / temperature).exp()
            chances = parts / parts.sum(dim=-1, keepdim=True)
            return torch.zeros_like(logits).scatter(-1, best.indices, chances)

        def zeros_for_logits(logits, k, temperature):
            k = min(k, logits.shape[-1])
            least = logits.topk(k, dim=-1).values[:, -1:]
            return (logits.masked_fill(logits < least, 0.0) / temperature).softmax(-1)

        def multiplied_by_the_temperature(logits, k, temperature):
            k = min(k, logits.shape[-1])
            least = logits.topk(k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
            return (logits * temperature).softmax(dim=-1)

        def only_the_k_largest(logits, k, temperature):
            best = logits.topk(min(k, logits.shape[-1]), dim=-1).values
            return (best / temperature).softmax(dim=-1)

        def the_smallest(logits, k, temperature):
            k = min(k, logits.shape[-1])
            most = (-logits).topk(k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(-logits < most, float("-inf"))
            return (logits / temperature).softmax(dim=-1)

        def changes_the_logits(logits, k, temperature):
            k = min(k, logits.shape[-1])
            least = logits.topk(k, dim=-1).values[:, -1:]
            logits[logits < least] = float("-inf")
            return (logits / temperature).softmax(dim=-1)

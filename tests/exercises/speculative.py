"""Answers to the exercises of `memory/speculative`."""
# ruff: noqa: F821  the names are the chapter's


class best_length:
    class right:
        def by_a_loop(rate, cost):
            best, gain = 0, 1.0
            for n in range(1, 21):
                now = expected_tokens(rate, n) / (n * cost + 1)
                if now > gain:
                    best, gain = n, now
            return best

        def by_a_sum(rate, cost):
            tokens, gains = 0.0, []
            for n in range(21):
                tokens += rate**n
                gains.append(tokens / (1 + cost * n))
            return gains.index(max(gains))

    class wrong:
        def always_four(rate, cost):
            return 4

        def without_the_cost(rate, cost):
            return max(range(21), key=lambda n: expected_tokens(rate, n))

        def from_one(rate, cost):
            return max(
                range(1, 21), key=lambda n: expected_tokens(rate, n) / (1 + n * cost)
            )

        def without_the_pass(rate, cost):
            return max(
                range(1, 21), key=lambda n: expected_tokens(rate, n) / (n * cost + 1e-9)
            )

        def counts_the_free_token_out(rate, cost):
            return max(
                range(21),
                key=lambda n: (expected_tokens(rate, n) - 1) / (1 + n * cost),
            )


class walk:
    class right:
        def by_search(parents, tokens, wanted):
            passed = [0]
            while True:
                here = passed[-1]
                found = [
                    n
                    for n, parent in enumerate(parents)
                    if parent == here and tokens[n] == wanted[here]
                ]
                if not found:
                    return passed
                passed += found

        def by_recursion(parents, tokens, wanted):
            def down(node):
                for child in range(node + 1, len(parents)):
                    if parents[child] == node and tokens[child] == wanted[node]:
                        return [node, *down(child)]
                return [node]

            return down(0)

    class wrong:
        def without_the_root(parents, tokens, wanted):
            passed = [0]
            for node, parent in enumerate(parents):
                if parent == passed[-1] and tokens[node] == wanted[parent]:
                    passed.append(node)
            return passed[1:]

        def in_a_row(parents, tokens, wanted):
            passed = [0]
            for node in range(1, len(parents)):
                if tokens[node] != wanted[node - 1]:
                    break
                passed.append(node)
            return passed

        def any_that_is_wanted(parents, tokens, wanted):
            good = [tokens[n] == wanted[parents[n]] for n in range(1, len(parents))]
            return [0, *(n for n, right in enumerate(good, 1) if right)]

        def of_the_node_itself(parents, tokens, wanted):
            passed = [0]
            for node, parent in enumerate(parents):
                if parent == passed[-1] and tokens[node] == wanted[node]:
                    passed.append(node)
            return passed

        def one_step_alone(parents, tokens, wanted):
            for node, parent in enumerate(parents):
                if parent == 0 and tokens[node] == wanted[0]:
                    return [0, node]
            return [0]


class accept_one:
    class right:
        def with_accept(p, q, guesses):
            for guess in guesses:
                target = torch.stack([p, torch.ones_like(p) / len(p)])
                kept, _ = accept(target, q[None], guess[None])
                if kept:
                    return guess
                p = residual(p, q)
            return torch.multinomial(p, 1)

        def by_hand(p, q, guesses):
            p = p.clone()
            for guess in guesses.tolist():
                if torch.rand(()) < min(1, (p[guess] / q[guess]).item()):
                    return guess
                p = torch.relu(p - q)
                p /= p.sum()
            return torch.multinomial(p, 1).item()

        def in_place(p, q, guesses):
            for guess in guesses:
                if torch.rand(()) * q[guess] < p[guess]:
                    return guess
                p.sub_(q).clamp_(min=0)
                p /= p.sum()
            return torch.multinomial(p, 1)

    class wrong:
        def the_first_alone(p, q, guesses):
            if torch.rand(()) * q[guesses[0]] < p[guesses[0]]:
                return guesses[0]
            return torch.multinomial(residual(p, q), 1)

        def always_against_p(p, q, guesses):
            for guess in guesses:
                if torch.rand(()) * q[guess] < p[guess]:
                    return guess
            return torch.multinomial(residual(p, q), 1)

        def one_residual_for_all(p, q, guesses):
            left = residual(p, q)
            for place, guess in enumerate(guesses):
                now = left if place else p
                if torch.rand(()) * q[guess] < now[guess]:
                    return guess
            return torch.multinomial(left, 1)

        def one_random_number(p, q, guesses):
            chance = torch.rand(())
            for guess in guesses:
                if chance * q[guess] < p[guess]:
                    return guess
                p = residual(p, q)
            return torch.multinomial(p, 1)

        def at_the_end_from_p(p, q, guesses):
            left = p
            for guess in guesses:
                if torch.rand(()) * q[guess] < left[guess]:
                    return guess
                left = residual(left, q)
            return torch.multinomial(p, 1)

        def drawn_from_p(p, q, guesses):
            return torch.multinomial(p, 1)

        def the_best_guess(p, q, guesses):
            guess = guesses[(p / q)[guesses].argmax()]
            if torch.rand(()) * q[guess] < p[guess]:
                return guess
            return torch.multinomial(residual(p, q), 1)

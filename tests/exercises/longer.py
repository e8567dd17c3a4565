"""Answers to the exercises of `position/longer`."""
# ruff: noqa: F821  the names are the chapter's


class scaling_for:
    class right:
        def by_branch(length, original_length):
            if length <= original_length:
                return YaRN(1, original_length)
            return YaRN(length / original_length, original_length)

        def by_name(length, original_length):
            longer = max(length, original_length)
            factor = longer / original_length
            return YaRN(original_length=original_length, factor=factor)

        def by_a_tensor(length, original_length):
            ratio = torch.tensor(length / original_length).clamp(min=1)
            return YaRN(ratio.item(), original_length)

    class wrong:
        def whole_factors(length, original_length):
            return YaRN(max(length // original_length, 1), original_length)

        def rounded_up(length, original_length):
            return YaRN(math.ceil(max(length / original_length, 1)), original_length)

        def the_length_of_today(length, original_length):
            return YaRN(max(length / original_length, 1), length)

        def another_kind(length, original_length):
            return Llama3Scaling(max(length / original_length, 1), original_length)

        def always_64(length, original_length):
            return YaRN(max(length / 64, 1), original_length)

        def with_another_ramp(length, original_length):
            factor = max(length / original_length, 1)
            return YaRN(factor, original_length, fast=4.0)

        def without_its_factor(length, original_length):
            factor = max(length / original_length, 1)
            return YaRN(factor, original_length, attention_factor=1.0)

        def with_its_square(length, original_length):
            factor = max(length / original_length, 1)
            return YaRN(
                factor, original_length, attention_factor=yarn_factor(factor) ** 2
            )


class by_pair:
    class right:
        def by_formula(divisors):
            def scaling(rotary_dim, base, positions):
                pairs = torch.arange(rotary_dim // 2).double()
                speeds = float(base) ** (-2 * pairs / rotary_dim)
                return speeds / torch.tensor(divisors).double()

            return scaling

        def by_list(divisors):
            def scaling(rotary_dim, base, positions):
                plain = rotary_frequencies(rotary_dim, base=base).tolist()
                pairs = zip(plain, divisors, strict=True)
                return torch.tensor([speed / by for speed, by in pairs]).double()

            return scaling

    class wrong:
        def multiplies(divisors):
            def scaling(rotary_dim, base, positions):
                return rotary_frequencies(rotary_dim, base=base) * torch.tensor(
                    divisors
                )

            return scaling

        def gives_numbers_at_once(divisors):
            speeds = rotary_frequencies(2 * len(divisors))
            return speeds / torch.tensor(divisors)

        def forgets_the_base(divisors):
            def scaling(rotary_dim, base, positions):
                return rotary_frequencies(rotary_dim) / torch.tensor(divisors)

            return scaling

        def the_largest_for_all(divisors):
            def scaling(rotary_dim, base, positions):
                return rotary_frequencies(rotary_dim, base=base) / max(divisors)

            return scaling

        def from_slow_to_fast(divisors):
            def scaling(rotary_dim, base, positions):
                plain = rotary_frequencies(rotary_dim, base=base)
                return plain / torch.tensor(divisors[::-1])

            return scaling

        def each_number_twice(divisors):
            def scaling(rotary_dim, base, positions):
                plain = rotary_frequencies(rotary_dim, base=base)
                return (plain / torch.tensor(divisors)).repeat(2)

            return scaling

        def divides_the_base(divisors):
            def scaling(rotary_dim, base, positions):
                pairs = torch.arange(rotary_dim // 2).double()
                return (base / torch.tensor(divisors)) ** (-2 * pairs / rotary_dim)

            return scaling


class goes_stale:
    class right:
        def by_speeds(scaling, original_length):
            early = torch.arange(1)
            late = torch.arange(3 * original_length)
            speeds = [
                rotary_frequencies(32, scaling=scaling, positions=positions)
                for positions in (early, late)
            ]
            return not torch.equal(*(s.flatten() for s in speeds))

        def as_a_tensor(scaling, original_length):
            early, late = torch.arange(5), torch.arange(2 * original_length)
            first, last = (scaling(16, 1e4, places) for places in (early, late))
            return (first != last).any()

        def by_lengths(scaling, original_length):
            seen = set()
            for length in (1, original_length, 2 * original_length):
                positions = torch.arange(length)
                speeds = scaling(16, 1e4, positions).flatten().tolist()
                seen.add(tuple(round(speed, 12) for speed in speeds))
            return len(seen) > 1

    class wrong:
        def always(scaling, original_length):
            return True

        def never(scaling, original_length):
            return False

        def looks_at_short_texts(scaling, original_length):
            early, late = torch.arange(1), torch.arange(original_length)
            speeds = [scaling(32, 1e4, positions) for positions in (early, late)]
            return not torch.equal(*(s.flatten() for s in speeds))

        def compares_with_no_scaling(scaling, original_length):
            late = torch.arange(4 * original_length)
            speeds = scaling(32, 1e4, late).flatten()
            return not torch.equal(speeds, rotary_frequencies(32))

        def looks_at_the_slowest_pair(scaling, original_length):
            early, late = torch.arange(1), torch.arange(4 * original_length)
            speeds = [scaling(16, 1e4, positions) for positions in (early, late)]
            return not torch.equal(*(s.flatten()[-1] for s in speeds))

        def goes_by_attributes(scaling, original_length):
            named = type(scaling).__name__
            return "Dynamic" in named or not hasattr(scaling, "factor")

        def goes_by_name(scaling, original_length):
            return isinstance(scaling, DynamicNTKScaling)

        def the_other_way_round(scaling, original_length):
            early, late = torch.arange(1), torch.arange(4 * original_length)
            speeds = [scaling(32, 1e4, positions) for positions in (early, late)]
            return torch.equal(*(s.flatten() for s in speeds))

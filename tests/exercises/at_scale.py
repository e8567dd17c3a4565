"""Answers to the exercises of `scale/at_scale`."""
# ruff: noqa: F821  the names are the chapter's


class hiding_length:
    class right:
        def tokens_first(machine, sizes, ranks):
            sent = 2 * sizes.head_dim * sizes.num_kv_heads * sizes.itemsize
            work = 4 * sizes.head_dim * sizes.num_heads / 2
            return sent / machine.link * machine.operations / work * ranks

        def by_trying(machine, sizes, ranks):
            tokens = torch.arange(1.0, 100_000.0).double()
            compute = 2 * sizes.head_dim * sizes.num_heads * tokens**2
            send = 2 * sizes.head_dim * sizes.num_kv_heads * tokens * sizes.itemsize
            enough = compute / machine.operations >= send / machine.link - 1e-12
            return tokens[enough][0] * ranks

        def by_the_model(machine, sizes, ranks):
            machine = machine._replace(network=None, latency=0.0, whole=1.0)
            low, high = 2 * ranks, 10**6
            while low < high:
                middle = (low + high) // 2
                sizes = sizes._replace(length=middle)
                t = attention_times(sizes, machine, ranks)
                if t.compute / ranks < t.send / (ranks - 1):
                    low = middle + 1
                else:
                    high = middle
            return low

    class wrong:
        def of_one_rank(machine, sizes, ranks):
            share = sizes.num_kv_heads / sizes.num_heads
            return share * sizes.itemsize * machine.operations / machine.link

        def not_causal(machine, sizes, ranks):
            share = sizes.num_kv_heads / sizes.num_heads
            tokens = share * sizes.itemsize * machine.operations / machine.link
            return ranks * tokens / 2

        def always_two_bytes(machine, sizes, ranks):
            share = sizes.num_kv_heads / sizes.num_heads
            return ranks * share * 2 * machine.operations / machine.link

        def as_many_key_heads(machine, sizes, ranks):
            return ranks * sizes.itemsize * machine.operations / machine.link

        def keys_alone(machine, sizes, ranks):
            share = sizes.num_kv_heads / sizes.num_heads / 2
            return ranks * share * sizes.itemsize * machine.operations / machine.link

        def over_the_network(machine, sizes, ranks):
            rate = min(machine.link, machine.network or machine.link)
            share = sizes.num_kv_heads / sizes.num_heads
            return ranks * share * sizes.itemsize * machine.operations / rate

        def whole_blocks(machine, sizes, ranks):
            share = sizes.num_kv_heads / sizes.num_heads
            tokens = share * sizes.itemsize * machine.operations / machine.link
            return ranks * tokens * machine.whole


class best_group:
    class right:
        def by_divisors(sizes, machine, ranks):
            best = None
            for group in (g for g in range(1, ranks + 1) if ranks % g == 0):
                kv = sizes.num_kv_heads
                if sizes.num_heads % group or (kv % group and group % kv):
                    continue
                plan = attention_times(sizes, machine, ranks, "zigzag", ulysses=group)
                if best is None or plan.seconds < best[0]:
                    best = plan.seconds, group
            return best[1]

        def by_the_share(sizes, machine, ranks):
            def share(group):
                try:
                    times = attention_times(sizes, machine, ranks, ulysses=group)
                except ValueError:
                    return 0
                return times.share

            return max(range(1, ranks + 1), key=share)

    class wrong:
        def powers_of_two(sizes, machine, ranks):
            groups = [2**k for k in range(8) if ranks % 2**k == 0]
            groups = [g for g in groups if sizes.num_heads % g == 0]

            def seconds(group):
                return attention_times(sizes, machine, ranks, ulysses=group).seconds

            return min(groups, key=seconds)

        def as_many_as_heads_allow(sizes, machine, ranks):
            return max(
                g
                for g in range(1, ranks + 1)
                if ranks % g == 0 and sizes.num_heads % g == 0
            )

        def a_node(sizes, machine, ranks):
            return min(machine.node, ranks)

        def least_sent(sizes, machine, ranks):
            def sent(group):
                try:
                    times = attention_times(sizes, machine, ranks, ulysses=group)
                except ValueError:
                    return float("inf")
                return times.sent

            return min(range(1, ranks + 1), key=sent)

        def slowest(sizes, machine, ranks):
            seconds = {}
            for group in range(1, ranks + 1):
                try:
                    times = attention_times(sizes, machine, ranks, ulysses=group)
                except ValueError:
                    continue
                seconds[group] = times.seconds
            return max(seconds, key=seconds.get)


def first(sizes, machine, seconds, most, **plan):
    ranks = 1
    while ranks <= most and 2 * ranks <= sizes.length:
        if attention_times(sizes, machine, ranks, **plan).seconds <= seconds:
            return ranks
        ranks *= 2


class ranks_needed:
    class right:
        def all_then_the_first(sizes, machine, seconds):
            counts = [2**k for k in range(13) if 2 * 2**k <= sizes.length]
            enough = [
                ranks
                for ranks in counts
                if attention_times(sizes, machine, ranks, "zigzag").seconds <= seconds
            ]
            return min(enough, default=None)

        def by_refusal(sizes, machine, seconds):
            ranks = 1
            while ranks <= 4096:
                try:
                    if attention_times(sizes, machine, ranks).seconds <= seconds:
                        return ranks
                except ValueError:
                    return None
                ranks *= 2

    class wrong:
        def from_the_ideal(sizes, machine, seconds):
            alone = attention_times(sizes, machine, 1).seconds
            for ranks in (2**k for k in range(13)):
                if alone / ranks <= seconds:
                    return ranks
            return None

        def halving(sizes, machine, seconds):
            low, high = 0, 12
            while low < high:
                middle = (low + high) // 2
                if attention_times(sizes, machine, 2**middle).seconds <= seconds:
                    high = middle
                else:
                    low = middle + 1
            return 2**low

        def the_most(sizes, machine, seconds):
            found = None
            for ranks in (2**k for k in range(13) if 2 * 2**k <= sizes.length):
                if attention_times(sizes, machine, ranks).seconds <= seconds:
                    found = ranks
            return found

        def never_none(sizes, machine, seconds):
            for ranks in (2**k for k in range(13) if 2 * 2**k <= sizes.length):
                if attention_times(sizes, machine, ranks).seconds <= seconds:
                    return ranks
            return 4096

        def compute_alone(sizes, machine, seconds):
            for ranks in (2**k for k in range(13) if 2 * 2**k <= sizes.length):
                if attention_times(sizes, machine, ranks).compute <= seconds:
                    return ranks
            return None

        def up_to_256(sizes, machine, seconds):
            return first(sizes, machine, seconds, most=256)

        def up_to_512(sizes, machine, seconds):
            return first(sizes, machine, seconds, most=512)

        def up_to_1024(sizes, machine, seconds):
            return first(sizes, machine, seconds, most=1024)

        def up_to_2048(sizes, machine, seconds):
            return first(sizes, machine, seconds, most=2048)

        def up_to_8192(sizes, machine, seconds):
            return first(sizes, machine, seconds, most=8192)

        def less_than(sizes, machine, seconds):
            for ranks in (2**k for k in range(13) if 2 * 2**k <= sizes.length):
                if attention_times(sizes, machine, ranks).seconds < seconds:
                    return ranks

        def striped(sizes, machine, seconds):
            return first(sizes, machine, seconds, 4096, scheme="striped")

"""Answers to the exercises of `scale/decode_parallel`."""
# ruff: noqa: F821  the names are the chapter's


class held:
    class right:
        def by_counting_on(rank, ranks, length):
            return len(range(rank, length, ranks))

        def by_the_rest(rank, ranks, length):
            each, more = divmod(length, ranks)
            return each + (rank < more)

    class wrong:
        def rounded_down(rank, ranks, length):
            return length // ranks

        def rounded_up(rank, ranks, length):
            return -(-length // ranks)

        def one_rank_too_many(rank, ranks, length):
            each, more = divmod(length, ranks)
            return each + (rank <= more)

        def all_of_the_rest_on_the_last(rank, ranks, length):
            each, more = divmod(length, ranks)
            return each + more * (rank == ranks - 1)


class own_mask:
    class right:
        def cut_from_the_whole(rank, ranks, start, new):
            whole = torch.ones(new, start + new).tril(start).bool()
            return whole[:, rank::ranks]

        def pair_by_pair(rank, ranks, start, new):
            held = range(rank, start + new, ranks)
            rows = [[j <= start + i for j in held] for i in range(new)]
            return torch.tensor(rows, dtype=torch.bool).view(new, len(held))

        def from_lists_that_may_be_empty(rank, ranks, start, new):
            keys = range(rank, start + new, ranks)
            queries = range(start, start + new)
            return torch.tensor([[key <= query for key in keys] for query in queries])

    class wrong:
        def lower_right_of_its_own_keys(rank, ranks, start, new):
            count = len(range(rank, start + new, ranks))
            return torch.ones(new, count, dtype=torch.bool).tril(count - new)

        def queries_from_zero(rank, ranks, start, new):
            keys = torch.arange(start + new)[rank::ranks]
            return keys <= torch.arange(new)[:, None]

        def without_itself(rank, ranks, start, new):
            keys = torch.arange(start + new)[rank::ranks]
            return keys < torch.arange(start, start + new)[:, None]

        def where_it_may_not(rank, ranks, start, new):
            keys = torch.arange(start + new)[rank::ranks]
            return keys > torch.arange(start, start + new)[:, None]

        def contiguous(rank, ranks, start, new):
            keys = torch.arange(start + new).tensor_split(ranks)[rank]
            return keys <= torch.arange(start, start + new)[:, None]

        def ones_and_zeros(rank, ranks, start, new):
            return torch.ones(new, start + new).tril(start)[:, rank::ranks]

        def only_what_was_there(rank, ranks, start, new):
            keys = torch.arange(start)[rank::ranks]
            return keys <= torch.arange(start, start + new)[:, None]


class doubling:
    class right:
        def by_halves(states, merge):
            def together(states):
                if len(states) == 1:
                    return states
                half = len(states) // 2
                low, high = together(states[:half]), together(states[half:])
                pairs = list(zip(low, high, strict=True))
                return [merge(a, b) for a, b in pairs] + [merge(b, a) for a, b in pairs]

            return together(states)

        def farthest_first(states, merge):
            distance = len(states) // 2
            while distance:
                before = list(states)
                for rank in range(len(before)):
                    states[rank] = merge(before[rank], before[rank ^ distance])
                distance //= 2
            return states

        def mirrored(states, merge):
            block = 2
            while block <= len(states):
                states = [
                    merge(states[rank], states[rank ^ (block - 1)])
                    for rank in range(len(states))
                ]
                block *= 2
            return states

    class wrong:
        def from_one_and_to_another(states, merge):
            ranks, distance = len(states), 1
            while distance < ranks:
                states = [
                    merge(states[rank], states[(rank + distance) % ranks])
                    for rank in range(ranks)
                ]
                distance *= 2
            return states

        def in_place(states, merge):
            distance = 1
            while distance < len(states):
                for rank in range(len(states)):
                    states[rank] = merge(states[rank], states[rank ^ distance])
                distance *= 2
            return states

        def always_its_neighbour(states, merge):
            for _ in range(len(states).bit_length() - 1):
                states = [
                    merge(states[rank], states[rank ^ 1]) for rank in range(len(states))
                ]
            return states

        def one_round_short(states, merge):
            distance = 1
            while distance < len(states) // 2:
                states = [
                    merge(states[rank], states[rank ^ distance])
                    for rank in range(len(states))
                ]
                distance *= 2
            return states

        def around_the_ring(states, merge):
            whole = states
            for turn in range(1, len(states)):
                whole = [
                    merge(whole[rank], states[rank - turn])
                    for rank in range(len(states))
                ]
            return whole

        def one_state_for_all(states, merge):
            while len(states) > 1:
                pairs = zip(states[::2], states[1::2], strict=True)
                states = [merge(a, b) for a, b in pairs]
            return states[0]

        def to_the_first_alone(states, merge):
            while len(states) > 1:
                pairs = zip(states[::2], states[1::2], strict=True)
                states = [merge(a, b) for a, b in pairs]
            return states

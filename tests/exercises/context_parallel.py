"""Answers to the exercises of `scale/context_parallel`."""
# ruff: noqa: F821  the names are the chapter's


class share_of_ideal:
    class right:
        def step_by_step(length, ranks, order):
            counts = ring_work(length, ranks, order)
            total = sum(map(sum, counts))
            time = sum(max(row[step] for row in counts) for step in range(ranks))
            return total / (ranks * time)

        def by_turning_the_table(length, ranks, order):
            steps = list(zip(*ring_work(length, ranks, order), strict=True))
            return sum(map(sum, steps)) / ranks / sum(map(max, steps))

    class wrong:
        def of_the_busiest_rank_alone(length, ranks, order):
            counts = ring_work(length, ranks, order)
            return length**2 / 2 / ranks / max(map(sum, counts))

        def of_the_busiest_rank_with_its_diagonal(length, ranks, order):
            counts = ring_work(length, ranks, order)
            return length * (length + 1) / 2 / ranks / max(sum(row) for row in counts)

        def of_the_last_rank(length, ranks, order):
            counts = ring_work(length, ranks, order)
            return length * (length + 1) / 2 / ranks / sum(counts[-1])

        def without_the_diagonal(length, ranks, order):
            counts = torch.tensor(ring_work(length, ranks, order))
            return length**2 / 2 / ranks / counts.amax(dim=0).sum().item()

        def not_shared(length, ranks, order):
            counts = torch.tensor(ring_work(length, ranks, order))
            return length * (length + 1) / 2 / counts.amax(dim=0).sum().item()

        def upside_down(length, ranks, order):
            counts = torch.tensor(ring_work(length, ranks, order))
            ideal = length * (length + 1) / 2 / ranks
            return counts.amax(dim=0).sum().item() / ideal


class owner:
    class right:
        def from_both_ends(position, length, ranks):
            size = length // (2 * ranks)
            return min(position // size, (length - 1 - position) // size)

        def by_folding(position, length, ranks):
            if position >= length // 2:
                position = length - 1 - position
            return position // (length // (2 * ranks))

        def with_a_word_on_the_table(position, length, ranks):
            # order_ranges(length, ranks) tells the same
            return min(position, length - 1 - position) * 2 * ranks // length

        def as_a_tensor(position, length, ranks):
            piece = torch.tensor(position * 2 * ranks // length)
            return torch.minimum(piece, 2 * ranks - 1 - piece)

        def in_numpy(position, length, ranks):
            from numpy import int64

            piece = int64(position) * 2 * ranks // length
            return min(piece, 2 * ranks - 1 - piece)

    class wrong:
        def contiguous(position, length, ranks):
            return position * ranks // length

        def striped(position, length, ranks):
            return position % ranks

        def pieces_around(position, length, ranks):
            return position * 2 * ranks // length % ranks

        def looked_up(position, length, ranks):
            for rank, some in enumerate(order_ranges(length, ranks)):
                if any(position in each for each in some):
                    return rank

        def in_floats(position, length, ranks):
            size = length / (2 * ranks)
            return min(position // size, (length - 1 - position) // size)

        def one_piece_too_far(position, length, ranks):
            piece = position * 2 * ranks // length
            return min(piece, 2 * ranks - piece)


class sent:
    class right:
        def in_closed_form(form, ranks, length, heads, kv_heads, width):
            tokens, peers = length // ranks, ranks - 1
            if form == "ring":
                return 2 * peers * tokens * kv_heads * width
            of_keys = max(kv_heads // ranks, 1)
            return peers * tokens * width * 2 * (heads // ranks + of_keys)

        def peer_by_peer(form, ranks, length, heads, kv_heads, width):
            token, total = width * (length // ranks), 0
            for peer in range(1, ranks):
                if form == "ring":
                    total += 2 * kv_heads * token
                    continue
                share = heads_of(peer, ranks, heads, kv_heads)
                of_keys = len(range(*share.indices(kv_heads)))
                total += (2 * heads // ranks + 2 * of_keys) * token
            return total

    class wrong:
        def keys_without_values(form, ranks, length, heads, kv_heads, width):
            tokens = length // ranks
            if form == "ring":
                return (ranks - 1) * tokens * kv_heads * width
            of_keys = max(kv_heads // ranks, 1)
            return (ranks - 1) * tokens * width * (2 * heads // ranks + of_keys)

        def to_itself_too(form, ranks, length, heads, kv_heads, width):
            tokens = length // ranks
            if form == "ring":
                return ranks * tokens * 2 * kv_heads * width
            of_keys = max(kv_heads // ranks, 1)
            return ranks * tokens * width * 2 * (heads // ranks + of_keys)

        def no_way_back(form, ranks, length, heads, kv_heads, width):
            tokens = length // ranks
            if form == "ring":
                return (ranks - 1) * tokens * 2 * kv_heads * width
            of_keys = max(kv_heads // ranks, 1)
            return (ranks - 1) * tokens * width * (heads // ranks + 2 * of_keys)

        def heads_of_keys_once(form, ranks, length, heads, kv_heads, width):
            tokens = length // ranks
            if form == "ring":
                return (ranks - 1) * tokens * 2 * kv_heads * width
            return (ranks - 1) * tokens * width * 2 * (heads + kv_heads) // ranks

"""Answers to the exercises of `speed/flash_triton`."""
# ruff: noqa: F821  the names are the chapter's


class programs:
    class right:
        def rounded_up(batch, heads, length, BLOCK_M):
            return -(-length // BLOCK_M) * heads * batch

        def counted(batch, heads, length, BLOCK_M):
            return torch.tensor(batch * heads * len(range(0, length, BLOCK_M)))

    class wrong:
        def rounded_down(batch, heads, length, BLOCK_M):
            return batch * heads * (length // BLOCK_M)

        def one_more(batch, heads, length, BLOCK_M):
            return batch * heads * (length // BLOCK_M + 1)

        def without_heads(batch, heads, length, BLOCK_M):
            return batch * triton.cdiv(length, BLOCK_M)

        def without_the_batch(batch, heads, length, BLOCK_M):
            return heads * triton.cdiv(length, BLOCK_M)

        def tiles(batch, heads, length, BLOCK_M):
            return batch * heads * triton.cdiv(length, BLOCK_M) ** 2

        def one_for_each_query(batch, heads, length, BLOCK_M):
            return batch * heads * length


class finish:
    class right:
        def by_a_heap(costs, places):
            import heapq

            free = [0] * places
            for cost in costs:
                heapq.heapreplace(free, free[0] + cost)
            return max(free)

        def by_sorting(costs, places):
            free = [0] * places
            for cost in costs:
                free = sorted([free[0] + cost, *free[1:]])
            return torch.tensor(free[-1])

    class wrong:
        def shared_evenly(costs, places):
            return sum(costs) / places

        def in_turn(costs, places):
            return max(sum(costs[place::places]) for place in range(places))

        def in_blocks(costs, places):
            size = -(-len(costs) // places)
            starts = range(0, len(costs), size)
            return max(sum(costs[start : start + size]) for start in starts)

        def in_waves(costs, places):
            starts = range(0, len(costs), places)
            return sum(max(costs[start : start + places]) for start in starts)

        def sorted_first(costs, places):
            free = [0] * places
            for cost in sorted(costs, reverse=True):
                free[free.index(min(free))] += cost
            return max(free)

        def one_place(costs, places):
            return sum(costs)

        def the_first_that_is_done(costs, places):
            free = [0] * places
            for cost in costs:
                free[free.index(min(free))] += cost
            return min(free)

        def the_last_to_start(costs, places):
            free = [0] * places
            for cost in costs:
                soonest = free.index(min(free))
                free[soonest] += cost
            return free[soonest]


class delta_kernel:
    class right:
        @triton.jit
        def by_columns(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            first = tl.program_id(0) * BLOCK_M
            rows = first + tl.arange(0, BLOCK_M)
            a, b = _load(do, rows, HEAD_DIM), _load(context, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(tl.trans(a * b), 0), mask=rows < context[2])

        @triton.jit
        def in_two_steps(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            rows = BLOCK_M * tl.program_id(0) + tl.arange(0, BLOCK_M)
            there = rows < do[2]
            delta = tl.sum(
                _load(context, rows, HEAD_DIM) * _load(do, rows, HEAD_DIM), 1
            )
            old = tl.load(sums + rows, mask=there)
            tl.store(sums + rows, tl.where(there, delta, old), mask=there)

    class wrong:
        @triton.jit
        def beyond_the_end(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
            product = _load(do, rows, HEAD_DIM) * _load(context, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(product, 1))

        @triton.jit
        def always_the_first_band(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            rows = tl.arange(0, BLOCK_M)
            product = _load(do, rows, HEAD_DIM) * _load(context, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(product, 1), mask=rows < do[2])

        @triton.jit
        def of_one_matrix(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
            tile = _load(do, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(tile * tile, 1), mask=rows < do[2])

        @triton.jit
        def added(do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr):
            rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
            both = _load(do, rows, HEAD_DIM) + _load(context, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(both, 1), mask=rows < do[2])

        @triton.jit
        def leaves_out_the_last(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
            product = _load(do, rows, HEAD_DIM) * _load(context, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(product, 1), mask=rows < do[2] - 1)

        @triton.jit
        def programs_one_row_apart(
            do, context, sums, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr
        ):
            rows = tl.program_id(0) + tl.arange(0, BLOCK_M)
            product = _load(do, rows, HEAD_DIM) * _load(context, rows, HEAD_DIM)
            tl.store(sums + rows, tl.sum(product, 1), mask=rows < do[2])

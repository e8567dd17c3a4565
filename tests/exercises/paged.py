"""Answers to the exercises of `memory/paged`."""
# ruff: noqa: F821  the names are the chapter's


class place_of:
    class right:
        def by_looking_everywhere(slot, table, length, block_size):
            places = torch.arange(length)
            slots = slots_of(torch.tensor(table), places, block_size).tolist()
            return slots.index(slot) if slot in slots else None

        def by_a_dictionary(slot, table, length, block_size):
            held = {}
            for place in range(length):
                block = table[place // block_size]
                held[block * block_size + place % block_size] = place
            return held.get(slot)

    class wrong:
        def last_block_is_full(slot, table, length, block_size):
            block, inside = divmod(slot, block_size)
            if block not in table:
                return None
            return table.index(block) * block_size + inside

        def the_way_there(slot, table, length, block_size):
            if slot >= length:
                return None
            return table[slot // block_size] * block_size + slot % block_size

        def one_too_many(slot, table, length, block_size):
            block, inside = divmod(slot, block_size)
            if block not in table:
                return None
            place = table.index(block) * block_size + inside
            return place if place <= length else None

        def minus_one_for_none(slot, table, length, block_size):
            block, inside = divmod(slot, block_size)
            if block not in table:
                return -1
            place = table.index(block) * block_size + inside
            return place if place < length else -1


class blocks_in_use:
    class right:
        def by_sharing(prompt, answers, written, block_size):
            apart = answers * blocks_for(prompt + written, block_size)
            if written:
                return apart - (answers - 1) * (prompt // block_size)
            return apart // answers

        def by_a_pool(prompt, answers, written, block_size):
            pool, zeros = BlockPool(block_size), torch.zeros(1, prompt, 1)
            made = [PagedCache(block_size, pool=pool)]
            made[0].append(zeros, zeros, torch.arange(prompt))
            made += [made[0].fork() for _ in range(answers - 1)]
            for cache in made:
                zeros = torch.zeros(1, written, 1)
                cache.append(zeros, zeros, torch.arange(prompt, prompt + written))
            return len(pool.users) - len(pool.free)

    class wrong:
        def nothing_shared(prompt, answers, written, block_size):
            return answers * blocks_for(prompt + written, block_size)

        def partial_block_shared(prompt, answers, written, block_size):
            common = blocks_for(prompt, block_size)
            more = blocks_for(prompt + written, block_size) - common
            return common + answers * more

        def original_of_the_copy_stays(prompt, answers, written, block_size):
            common = blocks_for(prompt, block_size)
            own = blocks_for(prompt + written, block_size) - prompt // block_size
            return common + answers * own

        def copies_without_a_token(prompt, answers, written, block_size):
            common = prompt // block_size
            own = blocks_for(prompt + written, block_size) - common
            return common + answers * own

        def own_tokens_alone(prompt, answers, written, block_size):
            own = blocks_for(written, block_size)
            return blocks_for(prompt, block_size) + answers * own

        def a_block_more_at_an_edge(prompt, answers, written, block_size):
            full, rest = divmod(prompt, block_size)
            if not written:
                return full + (rest > 0)
            return full + answers * ((rest + written) // block_size + 1)


class put_aside:
    class right:
        def by_extend(cache):
            pool, batch = cache.pool, cache.batch
            keys, values = (
                torch.zeros(*batch, t.shape[2], 0, t.shape[3])
                for t in (pool.keys, pool.values)
            )
            held = cache.extend(keys, values, cache.positions[..., :0])
            cache.free()

            def back():
                again = PagedCache(pool.block_size, pool=pool)
                again.extend(*held)
                return again

            return back

        def by_blocks(cache):
            pool, length = cache.pool, cache.length
            rows, batch, positions = len(cache.rows), cache.batch, cache.positions
            kept = [
                [pool.keys[row].clone(), pool.values[row].clone()] for row in cache.rows
            ]
            cache.free()

            def back():
                again = PagedCache(pool.block_size, pool=pool)
                both = []
                for number in range(2):
                    parts = [row[number].flatten(0, 1)[:length] for row in kept]
                    each = torch.stack(parts).movedim(1, 2)
                    both.append(each.reshape(*batch, *each.shape[1:]))
                assert len(kept) == rows
                again.append(*both, positions)
                return again

            return back

    class wrong:
        def emptied_and_not_freed(cache):
            pool, length = cache.pool, cache.length
            keys, values, positions = (
                t.clone()
                for t in cache.extend(
                    *(
                        torch.zeros(*cache.batch, t.shape[2], 0, t.shape[3])
                        for t in (pool.keys, pool.values)
                    ),
                    cache.positions[..., :0],
                )
            )
            cache.truncate(0)

            def back():
                again = PagedCache(pool.block_size, pool=pool)
                again.append(keys, values, positions)
                assert again.length == length
                return again

            return back

        def not_freed(cache):
            return lambda: cache

        def still_forked(cache):
            other = cache.fork()
            cache.free()
            return lambda: other

        def reads_when_it_comes_back(cache):
            pool, rows, length = cache.pool, [[*r] for r in cache.rows], cache.length
            batch, positions = cache.batch, cache.positions
            cache.free()

            def back():
                kept = pool.read(rows, length)
                again = PagedCache(pool.block_size, pool=pool)
                again.append(
                    *(t.reshape(*batch, *t.shape[1:]) for t in kept), positions
                )
                return again

            return back

        def in_a_pool_of_its_own(cache):
            kept = cache.pool.read(cache.rows, cache.length)
            batch, positions = cache.batch, cache.positions
            cache.free()

            def back():
                again = PagedCache(4)
                again.append(
                    *(t.reshape(*batch, *t.shape[1:]) for t in kept), positions
                )
                return again

            return back

        def positions_from_zero(cache):
            pool, length, batch = cache.pool, cache.length, cache.batch
            kept = pool.read(cache.rows, length)
            cache.free()

            def back():
                again = PagedCache(pool.block_size, pool=pool)
                given = (t.reshape(*batch, *t.shape[1:]) for t in kept)
                again.append(*given, torch.arange(length))
                return again

            return back

"""Answers to the exercises of `memory/grouped_query`."""
# ruff: noqa: F821  the names are the chapter's


class key_head:
    class right:
        def by_the_formula(head, num_heads, num_kv_heads):
            return head * num_kv_heads // num_heads

        def by_counting(head, num_heads, num_kv_heads):
            heads = torch.arange(num_kv_heads)
            return heads.repeat_interleave(num_heads // num_kv_heads)[head].item()

    class wrong:
        def dealt_like_cards(head, num_heads, num_kv_heads):
            return head % num_kv_heads

        def by_the_number_of_groups(head, num_heads, num_kv_heads):
            return head // num_kv_heads

        def place_in_the_group(head, num_heads, num_kv_heads):
            return head % (num_heads // num_kv_heads)

        def its_own(head, num_heads, num_kv_heads):
            return min(head, num_kv_heads - 1)


class most_heads:
    class right:
        def one_after_the_other(num_layers, num_heads, length, room):
            best = 0
            for count in range(1, num_heads + 1):
                fits = num_layers * length * count * 128 * 2 * 2 <= room
                if fits and num_heads % count == 0:
                    best = count
            return best

        def by_division(num_layers, num_heads, length, room):
            most = room // (num_layers * length * 512)
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=0)

    class wrong:
        def less_than_the_room(num_layers, num_heads, length, room):
            most = (room - 1) // (num_layers * length * 512)
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=0)

        def rounded(num_layers, num_heads, length, room):
            most = round(room / (num_layers * length * 512))
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=0)

        def keys_alone(num_layers, num_heads, length, room):
            most = room // (num_layers * length * 256)
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=0)

        def need_not_divide(num_layers, num_heads, length, room):
            return min(num_heads, room // (num_layers * length * 512))

        def at_least_one(num_layers, num_heads, length, room):
            most = room // (num_layers * length * 512)
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=1)

        def numbers_and_no_bytes(num_layers, num_heads, length, room):
            most = room // (num_layers * length * 256 * 4)
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=0)

        def one_layer(num_layers, num_heads, length, room):
            most = room // (length * 512)
            sizes = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            return max([n for n in sizes if n <= most], default=0)


class gathered:
    class right:
        def by_steps(rows, head_dim, num_kv_heads):
            heads = list(rows.split(head_dim))
            order = [heads[group::num_kv_heads] for group in range(num_kv_heads)]
            return torch.cat([head for group in order for head in group])

        def by_a_view(rows, head_dim, num_kv_heads):
            across = rows.shape[1]
            heads = rows.view(-1, num_kv_heads, head_dim * across).transpose(0, 1)
            return heads.reshape(-1, across)

        def by_sorting(rows, head_dim, num_kv_heads):
            heads = rows.unflatten(0, (-1, head_dim))
            reads = torch.arange(len(heads)) % num_kv_heads
            return heads[reads.argsort(stable=True)].flatten(0, 1)

        def in_place(rows, head_dim, num_kv_heads):
            heads = rows.clone().split(head_dim)
            order = sorted(range(len(heads)), key=lambda head: head % num_kv_heads)
            rows[:] = torch.cat([heads[head] for head in order])
            return rows

    class wrong:
        def left_as_they_are(rows, head_dim, num_kv_heads):
            return rows

        def dealt_once_more(rows, head_dim, num_kv_heads):
            heads = rows.unflatten(0, (num_kv_heads, -1, head_dim))
            return heads.transpose(0, 1).flatten(0, 2)

        def rows_and_not_heads(rows, head_dim, num_kv_heads):
            return rows.unflatten(0, (-1, num_kv_heads)).transpose(0, 1).flatten(0, 1)

        def within_the_heads(rows, head_dim, num_kv_heads):
            heads = rows.unflatten(0, (num_kv_heads, head_dim, -1))
            return heads.transpose(1, 2).flatten(0, 2)

        def not_flattened(rows, head_dim, num_kv_heads):
            return rows.unflatten(0, (-1, num_kv_heads, head_dim)).transpose(0, 1)

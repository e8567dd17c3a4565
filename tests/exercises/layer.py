"""Answers to the exercises of `core/layer`."""
# ruff: noqa: F821  the names are the chapter's


class strided:
    class right:
        def with_causal(stride):
            def rule(query_positions, key_positions):
                same = query_positions[..., None] % stride
                same = same == key_positions[..., None, :] % stride
                return same & causal(query_positions, key_positions)

            return rule

        def by_a_partial(stride):
            def rule(query_positions, key_positions, step):
                back = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
                return ~(back < 0) & (back / step == back // step)

            return partial(rule, step=stride)

    class wrong:
        def sees_the_future(stride):
            def rule(query_positions, key_positions):
                back = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
                return back % stride == 0

            return rule

        def keys_by_queries(stride):
            def rule(query_positions, key_positions):
                back = query_positions.unsqueeze(-2) - key_positions.unsqueeze(-1)
                return (back >= 0) & (back % stride == 0)

            return rule

        def as_many_keys_as_queries(stride):
            def rule(query_positions, key_positions):
                back = query_positions.unsqueeze(-1) - query_positions.unsqueeze(-2)
                return (back >= 0) & (back % stride == 0)

            return rule

        def for_one_sentence(stride):
            def rule(query_positions, key_positions):
                back = query_positions[:, None] - key_positions
                return (back >= 0) & (back % stride == 0)

            return rule

        def from_the_start(stride):
            def rule(query_positions, key_positions):
                past = causal(query_positions, key_positions)
                return past & (key_positions % stride == 0).unsqueeze(-2)

            return rule

        def the_others(stride):
            def rule(query_positions, key_positions):
                back = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
                return (back >= 0) & (back % stride != 0)

            return rule

        def one_step_alone(stride):
            def rule(query_positions, key_positions):
                back = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
                return (back == 0) | (back == stride)

            return rule

        def numbers(stride):
            def rule(query_positions, key_positions):
                back = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
                return ((back >= 0) & (back % stride == 0)).float()

            return rule

        def turned_over(stride):
            def rule(query_positions, key_positions):
                back = key_positions.unsqueeze(-1) - query_positions.unsqueeze(-2)
                return (back >= 0) & (back % stride == 0)

            return rule


class unit:
    class right:
        def by_the_norm(temperature):
            def process(queries, keys, positions):
                queries = queries / queries.norm(dim=-1, keepdim=True)
                keys = keys / keys.norm(dim=-1, keepdim=True)
                return temperature * queries, keys

            return process

        def by_the_mean_square(temperature):
            def process(queries, keys, positions):
                pair = [
                    t * t.square().sum(dim=-1, keepdim=True).rsqrt()
                    for t in (queries, keys)
                ]
                return [pair[0] * temperature, pair[1]]

            return process

        def with_a_small_number(temperature):
            def process(queries, keys, positions):
                queries = queries / (queries.norm(dim=-1, keepdim=True) + 1e-6)
                keys = keys * (keys.square().sum(-1, keepdim=True) + 1e-6).rsqrt()
                return temperature * queries, keys

            return process

        def by_rms_norm(temperature):
            def process(queries, keys, positions):
                width = queries.shape[-1:]
                queries, keys = (
                    nn.functional.rms_norm(each, width, eps=1e-6) / width[0] ** 0.5
                    for each in (queries, keys)
                )
                return temperature * queries, keys

            return process

    class wrong:
        def over_all_heads(temperature):
            def process(queries, keys, positions):
                queries = queries / queries.norm(dim=(-3, -1), keepdim=True)
                keys = keys / keys.norm(dim=(-3, -1), keepdim=True)
                return temperature * queries, keys

            return process

        def both_are_multiplied(temperature):
            def process(queries, keys, positions):
                queries = temperature * nn.functional.normalize(queries, dim=-1)
                return queries, temperature * nn.functional.normalize(keys, dim=-1)

            return process

        def keys_are_left(temperature):
            def process(queries, keys, positions):
                return temperature * nn.functional.normalize(queries, dim=-1), keys

            return process

        def along_the_text(temperature):
            def process(queries, keys, positions):
                queries = temperature * nn.functional.normalize(queries, dim=-2)
                return queries, nn.functional.normalize(keys, dim=-2)

            return process

        def mean_square_of_one(temperature):
            def process(queries, keys, positions):
                pair = [
                    t * t.square().mean(dim=-1, keepdim=True).rsqrt()
                    for t in (queries, keys)
                ]
                return temperature * pair[0], pair[1]

            return process

        def in_place(temperature):
            def process(queries, keys, positions):
                queries /= queries.norm(dim=-1, keepdim=True)
                keys /= keys.norm(dim=-1, keepdim=True)
                return temperature * queries, keys

            return process

        def queries_alone(temperature):
            def process(queries, keys, positions):
                return nn.functional.normalize(queries, dim=-1)

            return process

        def in_float64(temperature):
            def process(queries, keys, positions):
                queries, keys = (
                    nn.functional.normalize(each.double(), dim=-1)
                    for each in (queries, keys)
                )
                return temperature * queries, keys

            return process

        def as_many_heads_of_keys(temperature):
            def process(queries, keys, positions):
                queries = temperature * nn.functional.normalize(queries, dim=-1)
                keys = keys.repeat_interleave(2, dim=-3)
                return queries, nn.functional.normalize(keys, dim=-1)

            return process


class Rolling:
    class right:
        def by_lists(size):
            class Kept:
                def __init__(self):
                    self.length, self.held = 0, None

                def extend(self, *new):
                    self.length += new[2].shape[-1]
                    if self.held is not None:
                        pairs = zip(self.held, new, (-2, -2, -1), strict=True)
                        new = [torch.cat(pair, dim) for *pair, dim in pairs]
                    last = (
                        new[0][..., -size:, :],
                        new[1][..., -size:, :],
                        new[2][..., -size:],
                    )
                    self.held = [each.clone() for each in last]
                    return new

            return Kept()

        def by_position(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    given = super().extend(keys, values, positions)
                    new = given[2].argsort(dim=-1)[..., -size:]
                    rows = new.view(-1, 1, new.shape[-1], 1)
                    self.keys, self.values = (
                        t.take_along_dim(rows, dim=-2) for t in given[:2]
                    )
                    self.positions = given[2].take_along_dim(new, dim=-1)
                    self.length = count
                    return given

            return Kept()

        def around_a_growing_one(size):
            class Kept:
                def __init__(self):
                    self.length, self.inner = 0, Growing()

                def extend(self, keys, values, positions):
                    self.length += positions.shape[-1]
                    given = self.inner.extend(keys, values, positions)
                    self.inner = Growing()
                    last = [each[..., -size:, :].clone() for each in given[:2]]
                    self.inner.extend(*last, given[2][..., -size:].clone())
                    return given

            return Kept()

    class wrong:
        def gives_what_it_keeps(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    keys, values, positions = super().extend(keys, values, positions)
                    self.keys, self.values = (
                        keys[..., -size:, :],
                        values[..., -size:, :],
                    )
                    self.positions, self.length = positions[..., -size:], count
                    return self.keys, self.values, self.positions

            return Kept()

        def counts_what_it_keeps(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    given = super().extend(keys, values, positions)
                    self.keys, self.values = (t[..., -size:, :] for t in given[:2])
                    self.positions = given[2][..., -size:]
                    self.length = self.keys.shape[-2]
                    return given

            return Kept()

        def cuts_the_axis_of_the_batch(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    given = super().extend(keys, values, positions)
                    self.keys, self.values = (t[..., -size:, :] for t in given[:2])
                    self.positions, self.length = given[2][-size:], count
                    return given

            return Kept()

        def counts_the_positions_anew(size):
            class Kept:
                def __init__(self):
                    self.length, self.pair = 0, None

                def extend(self, keys, values, positions):
                    self.length += positions.shape[-1]
                    pair = (keys, values)
                    if self.pair is not None:
                        both = zip(self.pair, pair, strict=True)
                        pair = [torch.cat(two, dim=-2) for two in both]
                    self.pair = [each[..., -size:, :] for each in pair]
                    held = torch.arange(self.length - pair[0].shape[-2], self.length)
                    return *pair, held.expand(*positions.shape[:-1], -1)

            return Kept()

        def one_too_few(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    given, few = super().extend(keys, values, positions), size - 1
                    self.keys, self.values = (t[..., -few:, :] for t in given[:2])
                    self.positions, self.length = given[2][..., -few:], count
                    return given

            return Kept()

        def always_four(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    given = super().extend(keys, values, positions)
                    self.keys, self.values = (t[..., -4:, :] for t in given[:2])
                    self.positions, self.length = given[2][..., -4:], count
                    return given

            return Kept()

        def gives_few_and_keeps_all(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = size + keys.shape[-2]
                    keys, values, positions = super().extend(keys, values, positions)
                    keys, values = keys[..., -count:, :], values[..., -count:, :]
                    return keys, values, positions[..., -count:]

            return Kept()

        def keeps_all_in_lists(size):
            class Kept:
                def __init__(self):
                    self.length, self.past = 0, []

                def extend(self, *new):
                    self.length += new[2].shape[-1]
                    self.past.append(new)
                    count = size + new[2].shape[-1]
                    keys, values, positions = zip(*self.past, strict=True)
                    keys, values = torch.cat(keys, -2), torch.cat(values, -2)
                    positions = torch.cat(positions, -1)[..., -count:]
                    return keys[..., -count:, :], values[..., -count:, :], positions

            return Kept()

        def forgets_when_the_next_come(size):
            class Kept(Growing):
                def extend(self, *new):
                    gone_by = self.length + new[2].shape[-1]
                    if self.length > 0:
                        self.keys, self.values = (
                            t[..., -size:, :] for t in (self.keys, self.values)
                        )
                        self.positions = self.positions[..., -size:]
                    given = super().extend(*new)
                    self.length = gone_by
                    return given

            return Kept()

        def keeps_the_first(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    given = super().extend(keys, values, positions)
                    self.keys, self.values = (t[..., :size, :] for t in given[:2])
                    self.positions, self.length = given[2][..., :size], count
                    return given

            return Kept()

        def never_forgets(size):
            return Growing()

        def keeps_the_piece(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    self.length += keys.shape[-2]
                    return keys, values, positions

            return Kept()

        def forgets_the_positions(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    count = self.length + keys.shape[-2]
                    given = super().extend(keys, values, positions)
                    self.keys, self.values = (t[..., -size:, :] for t in given[:2])
                    self.positions = torch.arange(self.keys.shape[-2])
                    self.length = count
                    return given

            return Kept()

        def keeps_slices(size):
            class Kept(Growing):
                def extend(self, keys, values, positions):
                    gone_by = self.length + positions.shape[-1]
                    given = super().extend(keys, values, positions)
                    self.keys, self.values = (t[..., -size:, :] for t in given[:2])
                    self.positions, self.length = given[2][..., -size:], gone_by
                    return given

            return Kept()

"""Answers to the exercises of `memory/quantised`."""
# ruff: noqa: F821  the names are the chapter's


class bits_per_number:
    class right:
        def by_the_sum(bits, shared):
            return (bits * shared + 16 + 16) / shared

        def by_a_group(bits, shared):
            codes, *ruler = quantize(torch.ones(1, shared).half(), bits)
            stored = [_pack(codes.mT, bits), *ruler]
            return sum(each.nbytes for each in stored) * 8 / shared

    class wrong:
        def without_rulers(bits, shared):
            return bits

        def the_step_alone(bits, shared):
            return bits + 16 / shared

        def in_bytes(bits, shared):
            return (bits + 32 / shared) / 8

        def rounded_up(bits, shared):
            return bits + -(-32 // shared) * 2

        def of_the_group(bits, shared):
            return bits * shared + 32


class row_of:
    class right:
        def by_remainders(packed, bits, token):
            per = 8 // bits
            row = packed[..., token // per, :]
            return (row.int() // 2 ** (bits * (token % per))) % 2**bits

        def unpacked(packed, bits, token):
            per = 8 // bits
            row = packed[..., token // per : token // per + 1, :]
            return _unpack(row, bits)[..., token % per, :]

    class wrong:
        def all_unpacked(packed, bits, token):
            return _unpack(packed, bits)[..., token, :]

        def from_the_other_end(packed, bits, token):
            row, place = divmod(token, 8 // bits)
            shift = 8 - bits - bits * place
            return packed[..., row, :] >> shift & 2**bits - 1

        def not_cut_off(packed, bits, token):
            row, place = divmod(token, 8 // bits)
            return packed[..., row, :] >> bits * place

        def one_code_a_byte(packed, bits, token):
            return packed[..., token * bits // 8, :] & 2**bits - 1

        def shifted_by_places(packed, bits, token):
            row, place = divmod(token, 8 // bits)
            return packed[..., row, :] >> place & 2**bits - 1

        def of_four_bits(packed, bits, token):
            row, place = divmod(token, 2)
            return packed[..., row % packed.shape[-2], :] >> 4 * place & 15

        def with_an_axis_left(packed, bits, token):
            return _unpack(packed, bits)[..., token : token + 1, :]

        def for_three_axes_alone(packed, bits, token):
            row, place = divmod(token, 8 // bits)
            return packed[:, row] >> bits * place & 2**bits - 1


class spread_out:
    class right:
        def by_a_mirror(queries, keys):
            width = keys.shape[-1]
            axis = -torch.ones(width) / width**0.5
            axis[keys.abs().mean(dim=0).argmax()] += 1
            axis = axis / axis.norm()
            return tuple(t - 2 * (t @ axis)[:, None] * axis for t in (queries, keys))

        def by_hadamard(queries, keys):
            table = torch.ones(1, 1)
            while len(table) < keys.shape[-1]:
                top, low = torch.cat([table, table], 1), torch.cat([table, -table], 1)
                table = torch.cat([top, low])
            table = table / len(table) ** 0.5
            return queries @ table, keys @ table

        def in_double(queries, keys):
            width = keys.shape[-1]
            rotation, _ = torch.linalg.qr(torch.randn(width, width).double())
            return queries.double() @ rotation, keys.double() @ rotation

    class wrong:
        def scaled_by_channel(queries, keys):
            largest = keys.abs().amax(dim=0)
            return queries * largest, keys / largest

        def one_more_channel(queries, keys):
            loud = keys.abs().mean(dim=0).argmax()
            keys, queries = keys.clone(), queries.clone()
            keys[:, loud] /= 2
            more = (torch.cat([t, t[:, loud, None]], dim=-1) for t in (queries, keys))
            return tuple(more)

        def nothing(queries, keys):
            return queries, keys

        def keys_alone(queries, keys):
            rotation, _ = torch.linalg.qr(torch.randn(keys.shape[-1], keys.shape[-1]))
            return queries, keys @ rotation

        def another_order(queries, keys):
            order = torch.randperm(keys.shape[-1])
            return queries[:, order], keys[:, order]

        def by_no_rotation(queries, keys):
            mixed = torch.randn(keys.shape[-1], keys.shape[-1]) / keys.shape[-1] ** 0.5
            return queries @ mixed, keys @ mixed

        def without_the_outlier(queries, keys):
            return queries, keys - keys.mean(dim=0)

        def turned_back(queries, keys):
            rotation, _ = torch.linalg.qr(torch.randn(keys.shape[-1], keys.shape[-1]))
            return queries @ rotation, keys @ rotation.mT

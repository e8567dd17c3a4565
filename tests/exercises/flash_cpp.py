"""Answers to the exercises of `speed/flash_cpp`."""
# ruff: noqa: F821  the names are the chapter's


class best_block:
    class right:
        def by_search(registers):
            best = (1, 1)
            for N in (1, 2, 3, 4):
                M = (registers - 1 - N) // N
                if M >= 1 and 1 / best[0] + 1 / best[1] > 1 / M + 1 / N:
                    best = (M, N)
            return best

        def as_a_list(registers):
            blocks = [[(registers - 1 - N) // N, N] for N in (1, 2, 3, 4)]
            return min(
                (b for b in blocks if b[0] > 0), key=lambda b: sum(b) / (b[0] * b[1])
            )

    class wrong:
        def without_the_row(registers):
            N = min(4, max(1, registers // 8))
            return (registers - 1) // N, N

        def most_sums(registers):
            fit = [
                (M * N, M, N)
                for M in range(1, registers)
                for N in range(1, 5)
                if registers >= M * N
            ]
            return max(fit)[1:]

        def turned(registers):
            best = {3: (1, 1), 16: (2, 6), 22: (3, 6), 32: (4, 6), 64: (4, 14)}
            return best[registers]

        def always_four_wide(registers):
            return max((registers - 5) // 4, 1), 4

        def the_larger_of_two_that_tie(registers):
            blocks = [((registers - 1 - N) // N, N) for N in (4, 3, 2, 1)]
            fit = [b for b in blocks if b[0] > 0]
            return min(fit, key=lambda b: sum(b) / (b[0] * b[1]))

        def nearly_square(registers):
            N = min(4, int((registers - 1) ** 0.5))
            return (registers - 1 - N) // N, N

        def widest_that_is_not_wider_than_high(registers):
            blocks = [((registers - 1 - N) // N, N) for N in (1, 2, 3, 4)]
            return max((b for b in blocks if b[0] >= b[1]), key=lambda b: b[1])


class power_of_two:
    class right:
        def by_products(n):
            bits = (n + 127) * 2**23
            return bits.to(torch.int32).view(torch.float32)

        def by_numpy(n):
            bits = (n.numpy().astype("int32") + 127) << 23
            return torch.from_numpy(bits.view("float32"))

        def in_place(n):
            n += 127
            n <<= 23
            return n.int().view(torch.float32)

    class wrong:
        def without_the_bias(n):
            return (n.int() << 23).view(torch.float32)

        def converted(n):
            return ((n.int() + 127) << 23).float()

        def one_bit_off(n):
            return ((n.int() + 127) << 22).view(torch.float32)

        def other_bias(n):
            return ((n.int() + 128) << 23).view(torch.float32)

        def by_shifting_one(n):
            return (1 << n.clamp(min=0)).float()

        def a_power(n):
            return 2.0**n

        def by_exp2(n):
            return torch.exp2(n.float())

        def by_special_exp2(n):
            return torch.special.exp2(n.float())

        def by_logspace(n):
            return torch.logspace(127, -126, 254, base=2)

        def by_products_of_two(n):
            steps = torch.full((254,), 2.0).cumprod(0) / 2.0**127
            return steps.flip(0)

        def one_by_one(n):
            return torch.tensor([2.0**i for i in n.tolist()])

        def by_ldexp(n):
            return torch.ldexp(torch.ones(len(n)), n)

        def in_as_many_bits_as_came(n):
            return ((n + 127) << 23).view(torch.float32)

        def by_whole_numbers(n):
            return torch.stack([torch.tensor(2.0 ** int(one)) for one in n])


class weave:
    class right:
        def by_loops(matrix):
            woven = []
            for i in range(0, len(matrix), 2):
                for column in range(matrix.shape[1]):
                    for row in (i, i + 1):
                        there = row < len(matrix)
                        woven.append(matrix[row, column].item() if there else 0.0)
            return torch.tensor(woven)

        def by_stacking(matrix):
            zeros = matrix.new_zeros(len(matrix) % 2, matrix.shape[1])
            matrix = torch.cat([matrix, zeros])
            return torch.stack([matrix[::2], matrix[1::2]], dim=-1).flatten()

    class wrong:
        def transposed_whole(matrix):
            return matrix.T.flatten()

        def as_it_lies(matrix):
            return matrix.flatten()

        def without_zeros(matrix):
            parts = matrix.split(2)
            return torch.cat([part.T.flatten() for part in parts])

        def pairs_of_columns(matrix):
            zeros = matrix.new_zeros(len(matrix) % 2, matrix.shape[1])
            matrix = torch.cat([matrix, zeros])
            return matrix.view(-1, 2).T.flatten()

        def halves_by_turns(matrix):
            zeros = matrix.new_zeros(len(matrix) % 2, matrix.shape[1])
            half = torch.cat([matrix, zeros]).chunk(2)
            return torch.stack(half, dim=-1).flatten()

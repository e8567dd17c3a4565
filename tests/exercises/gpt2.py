"""Answers to the exercises of `core/gpt2`."""
# ruff: noqa: F821  the names are the chapter's


class block_parameters:
    class right:
        def as_a_polynomial(d):
            return 12 * d**2 + 13 * d

        def as_a_tensor(d):
            return torch.tensor(12 * d**2 + 13 * d)

        def layer_by_layer(d):
            layers = [(d, d)] * 4 + [(d, 4 * d), (4 * d, d)]
            return sum(rows * columns + columns for rows, columns in layers) + 4 * d

    class wrong:
        def without_biases(d):
            return 12 * d * d + 4 * d

        def one_norm(d):
            return 12 * d * d + 11 * d

        def norms_without_shift(d):
            return 12 * d * d + 11 * d

        def three_matrices(d):
            return 11 * d * d + 12 * d

        def both_biases_wide(d):
            return 12 * d * d + 16 * d

        def in_words(d):
            return f"{12 * d**2 + 13 * d:,}"


class meeting_length:
    class right:
        def by_search(d):
            length = 1
            while 4 * length**2 * d < 8 * length * d**2:
                length += 1
            return length

        def as_a_float(d):
            return 8 * d**2 / (4 * d)

        def as_a_tensor(d):
            return torch.tensor(2 * d)

    class wrong:
        def the_width(d):
            return d

        def twice_too_long(d):
            return 4 * d

        def averages_forgotten(d):
            return 8 * d**2 // (2 * d)

        def a_constant(d):
            return 1536

        def nothing(d):
            return 0


class longest_text:
    class right:
        def by_division(room, d, num_blocks, num_bytes):
            return int(room / (2 * num_blocks * d * num_bytes))

        def by_counting(room, d, num_blocks, num_bytes):
            key = value = num_blocks * d * num_bytes
            tokens, left = divmod(room, key + value)
            assert 0 <= left < key + value
            return tokens

    class wrong:
        def keys_alone(room, d, num_blocks, num_bytes):
            return room // (num_blocks * d * num_bytes)

        def one_layer(room, d, num_blocks, num_bytes):
            return room // (2 * d * num_bytes)

        def numbers_not_bytes(room, d, num_blocks, num_bytes):
            return room // (2 * num_blocks * d)

        def part_of_a_token(room, d, num_blocks, num_bytes):
            return room / (2 * num_blocks * d * num_bytes)

        def rounded_up(room, d, num_blocks, num_bytes):
            return -(-room // (2 * num_blocks * d * num_bytes))

        def always_four_bytes(room, d, num_blocks, num_bytes):
            return room // (2 * num_blocks * d * 4)

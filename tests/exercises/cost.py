"""Answers to the exercises of `speed/cost`."""
# ruff: noqa: F821  the names are the chapter's


class table_bytes:
    class right:
        def by_a_tensor(length, num_heads, itemsize):
            return (
                torch.empty(num_heads, length, length, device="meta").numel() * itemsize
            )

        def as_a_tensor(length, num_heads, itemsize):
            return torch.tensor(itemsize * length * length * num_heads)

    class wrong:
        def always_two_bytes(length, num_heads, itemsize):
            return num_heads * length**2 * 2

        def always_twelve_heads(length, num_heads, itemsize):
            return 12 * length**2 * itemsize

        def numbers_for_bytes(length, num_heads, itemsize):
            return num_heads * length**2

        def one_head(length, num_heads, itemsize):
            return length**2 * itemsize

        def below_the_diagonal(length, num_heads, itemsize):
            return num_heads * length * (length + 1) // 2 * itemsize

        def scores_and_weights(length, num_heads, itemsize):
            return 2 * num_heads * length**2 * itemsize


class least_seconds:
    class right:
        def in_a_list(operations, moved, product_rate, copy_rate):
            times = {
                "processor": operations / product_rate,
                "memory": moved / copy_rate,
            }
            pace = max(times, key=times.get)
            return [times[pace], pace]

        def by_the_ridge(operations, moved, product_rate, copy_rate):
            if operations / moved < product_rate / copy_rate:
                return torch.tensor(moved / copy_rate), "memory"
            return torch.tensor(operations / product_rate), "processor"

    class wrong:
        def added(operations, moved, product_rate, copy_rate):
            compute, carry = operations / product_rate, moved / copy_rate
            return compute + carry, "memory" if carry > compute else "processor"

        def the_faster_sets_the_pace(operations, moved, product_rate, copy_rate):
            compute, carry = operations / product_rate, moved / copy_rate
            return min(compute, carry), "memory" if carry < compute else "processor"

        def compares_the_counts(operations, moved, product_rate, copy_rate):
            compute, carry = operations / product_rate, moved / copy_rate
            return max(compute, carry), "memory" if moved >= operations else "processor"

        def ten_bytes_a_second(operations, moved, product_rate, copy_rate):
            compute, carry = operations / product_rate, moved / 10
            return max(compute, carry), "memory" if carry > compute else "processor"

        def a_hundred_operations_a_second(operations, moved, product_rate, copy_rate):
            compute, carry = operations / 100, moved / copy_rate
            return max(compute, carry), "memory" if carry > compute else "processor"

        def by_the_memory_alone(operations, moved, product_rate, copy_rate):
            carry = moved / copy_rate
            pace = "memory" if carry >= 1 else "processor"
            return max(operations / product_rate, carry), pace

        def intensity_above_one(operations, moved, product_rate, copy_rate):
            compute, carry = operations / product_rate, moved / copy_rate
            return max(compute, carry), "memory" if operations <= moved else "processor"

        def names_exchanged(operations, moved, product_rate, copy_rate):
            compute, carry = operations / product_rate, moved / copy_rate
            return max(compute, carry), "processor" if carry > compute else "memory"

        def rates_exchanged(operations, moved, product_rate, copy_rate):
            compute, carry = operations / copy_rate, moved / product_rate
            return max(compute, carry), "memory" if carry > compute else "processor"

        def seconds_alone(operations, moved, product_rate, copy_rate):
            return max(operations / product_rate, moved / copy_rate)


class one_query_intensity:
    class right:
        def divided_through(num_keys, head_dim):
            per_key = (4 * head_dim + 6) / (8 * head_dim)
            return per_key * num_keys / (num_keys + 1)

        def as_a_tensor(num_keys, head_dim):
            operations = torch.tensor((4 * head_dim + 6) * num_keys)
            return operations / (4 * head_dim * (1 + num_keys + num_keys + 1))

    class wrong:
        def keys_alone(num_keys, head_dim):
            operations = (4 * head_dim + 6) * num_keys
            return operations / (4 * (2 * head_dim + num_keys * head_dim))

        def without_query_and_context(num_keys, head_dim):
            operations = (4 * head_dim + 6) * num_keys
            return operations / (8 * num_keys * head_dim)

        def without_the_context(num_keys, head_dim):
            operations = (4 * head_dim + 6) * num_keys
            return operations / (4 * (head_dim + 2 * num_keys * head_dim))

        def per_number(num_keys, head_dim):
            operations = (4 * head_dim + 6) * num_keys
            return operations / (2 * head_dim + 2 * num_keys * head_dim)

        def the_table_too(num_keys, head_dim):
            numbers = 2 * head_dim + 2 * num_keys * head_dim + 4 * num_keys
            return (4 * head_dim + 6) * num_keys / (4 * numbers)

        def products_alone(num_keys, head_dim):
            numbers = 2 * head_dim + 2 * num_keys * head_dim
            return 4 * head_dim * num_keys / (4 * numbers)

        def about_one_half(num_keys, head_dim):
            return 0.5112

        def turned_round(num_keys, head_dim):
            numbers = 2 * head_dim + 2 * num_keys * head_dim
            return 4 * numbers / ((4 * head_dim + 6) * num_keys)

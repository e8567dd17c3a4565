"""Answers to the exercise of `tools/checks`."""
# ruff: noqa: F821  the names are the chapter's


class key_head:
    class right:
        def by_the_size_of_a_group(head, num_heads, num_kv_heads):
            return head // (num_heads // num_kv_heads)

        def by_repeating(head, num_heads, num_kv_heads):
            groups = torch.arange(num_kv_heads)
            return groups.repeat_interleave(num_heads // num_kv_heads)[head]

    class wrong:
        def in_turn(head, num_heads, num_kv_heads):
            return head % num_kv_heads

        def by_the_number_of_groups(head, num_heads, num_kv_heads):
            return head // num_kv_heads

        def its_own(head, num_heads, num_kv_heads):
            return head

        def counts_from_one(head, num_heads, num_kv_heads):
            return head // (num_heads // num_kv_heads) + 1

        def always_the_first(head, num_heads, num_kv_heads):
            return 0

"""Answers to the exercise of `tools/ranks`."""


class held:
    class right:
        def step_by_step(rank, step, ranks):
            for _ in range(step):
                rank = ranks - 1 if rank == 0 else rank - 1
            return rank

        def by_turning_a_list(rank, step, ranks):
            around = list(range(ranks))
            step %= ranks
            return (around[ranks - step :] + around[: ranks - step])[rank]

    class wrong:
        def the_other_way_around(rank, step, ranks):
            return (rank + step) % ranks

        def without_going_around(rank, step, ranks):
            return rank - step

        def its_own(rank, step, ranks):
            return rank

        def one_step_late(rank, step, ranks):
            return (rank - max(step - 1, 0)) % ranks

        def once_around(rank, step, ranks):
            return rank - step if rank >= step else rank - step + ranks

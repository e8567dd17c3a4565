"""Answers to the exercise of `scale/demo`."""


class reached:
    class right:
        def by_the_ideal_time(alone, seconds):
            ideal = alone / len(seconds)
            return ideal / sorted(seconds)[-1]

        def by_all_that_was_held(alone, seconds):
            slowest, ranks = 0.0, 0
            for each in seconds:
                slowest, ranks = max(slowest, each), ranks + 1
            return alone / slowest / ranks

    class wrong:
        def by_the_mean_rank(alone, seconds):
            return alone / sum(seconds)

        def by_the_fastest_rank(alone, seconds):
            return alone / (len(seconds) * min(seconds))

        def without_the_number_of_ranks(alone, seconds):
            return alone / max(seconds)

        def upside_down(alone, seconds):
            return len(seconds) * max(seconds) / alone

        def by_the_last_rank(alone, seconds):
            return alone / (len(seconds) * seconds[-1])

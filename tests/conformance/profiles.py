"""How many examples Hypothesis draws: few and always the same, or many and new ones."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "book",
    max_examples=200,  # of each property, shared among the mechanisms
    derandomize=True,
    database=None,
    deadline=None,  # no test here depends on time
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "long", settings.get_profile("book"), max_examples=10_000, derandomize=False
)
settings.load_profile("book")

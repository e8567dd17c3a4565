"""What every mechanism must hold: mechanisms x properties, each pair run.

To add a mechanism, add an entry to `mechanisms.py`: how it is made, what it reads, and
how it is wired. What is no softmax says how it makes weights of scores, by `weigh`. A
form that may stand in place of `attend` is also given as `form`; it is asked of the
options that its signature has. Where not all sizes fit it, `fits` makes those that were
drawn fit. A property that does not apply needs an `Excuse`: a reason, and a check that
it is true. To add a property, write one function with `@sentence` over it, and its
fault in `faults.py`. `tests/test_conformance.py` runs all pairs, and
`python tests/conformance_table.py` prints them with examples and seconds.
"""

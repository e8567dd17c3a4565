"""What several tests share."""

import gc
import os
from collections.abc import Iterator

import jaxtyping
import pytest
import shapes
import torch

import conformance.profiles  # noqa: F401  for `--hypothesis-profile long`

jaxtyping.jaxtyped = shapes.jaxtyped  # before the package is imported

# Triton asks when it is imported, and torch may be the one to do so.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What CI asks of every change, and `make test FAST=1` leaves out: they wait
# for processes that are killed, and measure what seldom changes.
SLOW = {
    "test_execute_faults.py",
    "test_the_number_of_cores_changes_nothing",
    "test_the_skeleton_passes_every_test_as_it_is",
    "test_the_wheel_is_the_same_bytes_wherever_and_whenever_it_is_built",
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: left out by make test FAST=1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays: nobody looks for garbage among it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {item.path.name, getattr(item, "originalname", None)} & SLOW:
            item.add_marker("slow")


@pytest.fixture
def as_importer():
    """The package without the shape checks of a test run, as an importer meets it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws its own numbers, and the same ones each time."""
    torch.manual_seed(2357)

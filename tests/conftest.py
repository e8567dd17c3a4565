"""What several tests share."""

import jaxtyping
import pytest
import torch

import conformance.profiles  # noqa: F401  for `--hypothesis-profile long`


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

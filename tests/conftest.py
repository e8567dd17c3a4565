"""What several tests share."""

import os

import jaxtyping
import pytest
import torch

import conformance.profiles  # noqa: F401  for `--hypothesis-profile long`

# Triton asks when it is imported, and torch may be the one to do so.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


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

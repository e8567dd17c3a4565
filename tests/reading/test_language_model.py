"""What must stay true of `attention.reading.language_model`."""

import pytest
import torch

from attention import generate
from attention.memory.kv_cache import KVCache
from attention.reading.language_model import LanguageModel


@pytest.fixture
def small():
    torch.manual_seed(0)
    return LanguageModel(31, 24, 40, 3, 6, num_kv_heads=2).eval()


def test_generation_with_a_cache_is_generation_without(small):
    without = list(generate(small, [3, 5, 7], num_tokens=11))
    assert (
        list(generate(small, [3, 5, 7], num_tokens=11, make_cache=KVCache)) == without
    )

"""What must stay true of `attention.some_part.some_name`."""

import pytest
import torch
from examples import said

from attention.some_part.some_name import some_name


def test_a_token_is_no_step_from_itself():
    assert (some_name(7).diagonal() == 0).all()


def test_the_way_back_is_as_long_as_the_way_there():
    assert torch.equal(some_name(7), -some_name(7).T)


@pytest.mark.parametrize("length", [0, -1, 2.5, True])
def test_a_length_that_counts_no_tokens_is_refused(length, as_importer):
    with pytest.raises(ValueError, match=said("length", "whole number", "got", length)):
        some_name(length)

"""What must stay true of `attention.reading.heads`."""

import pytest
import torch
from examples import said

from attention.reading.heads import heads


def test_a_token_is_no_step_from_itself():
    assert (heads(7).diagonal() == 0).all()


def test_the_way_back_is_as_long_as_the_way_there():
    assert torch.equal(heads(7), -heads(7).T)


@pytest.mark.parametrize("length", [0, -1, 2.5, True])
def test_a_length_that_counts_no_tokens_is_refused(length, as_importer):
    with pytest.raises(ValueError, match=said("length", "whole number", "got", length)):
        heads(length)

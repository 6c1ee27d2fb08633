"""The mask item has the first id after the catalogue and ends the histories of queries."""

import numpy as np
import pytest

from pixelrec_jax.data.mask_item import mask_item_of, num_ids, query_length, with_mask_item
from pixelrec_jax.data.queries import Queries
from pixelrec_jax.data.tasks import TASKS

QUERIES = Queries(
    user=np.int32([1, 2]),
    history=np.int32([[0, 3], [4, 5]]),
    seen=np.int32([[3], [4]]),
    target=np.int32([6, 7]),
    time=np.int32([[0, 0], [9, 0]]),
)


@pytest.mark.parametrize("name", TASKS)
def test_what_follows_from_a_mask_item_agrees(name):
    mask = mask_item_of(TASKS[name], 10)
    ended = with_mask_item(QUERIES, mask)
    assert (mask is not None) == (name == "cloze")
    assert ended.history.shape[1] == query_length(TASKS[name], 2)
    assert ended.history.max(initial=9) == num_ids(10, mask) - 1


def test_queries_end_with_it_at_the_time_of_the_last_item():
    ended = with_mask_item(QUERIES, 10)
    np.testing.assert_array_equal(ended.history, [[0, 3, 10], [4, 5, 10]])
    np.testing.assert_array_equal(ended.time, [[0, 0, 0], [9, 0, 0]])
    assert ended.history.dtype == ended.time.dtype == np.int32
    assert with_mask_item(QUERIES.replace(time=None), 10).time is None
    assert with_mask_item(QUERIES, None) is QUERIES

"""Allocation against all combinations."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.methods.search.allocation import Allocator, Option

option = st.tuples(st.integers(1, 60), st.floats(0, 10))
layers = st.lists(
    st.lists(option, min_size=1, max_size=4), min_size=1, max_size=4
)


def allocator_of(sizes_and_costs):
    return Allocator(
        {
            f"layer{i}": [
                Option(f"W{j}", size, cost)
                for j, (size, cost) in enumerate(choices)
            ]
            for i, choices in enumerate(sizes_and_costs)
        }
    )


@settings(max_examples=200, deadline=None)
@given(layers, st.integers(0, 250))
def test_no_combination_is_better(sizes_and_costs, limit):
    allocator = allocator_of(sizes_and_costs)
    combinations = [
        (sum(s for s, _ in combo), sum(c for _, c in combo))
        for combo in itertools.product(*sizes_and_costs)
    ]
    inside = [cost for size, cost in combinations if size <= limit]
    if not inside:
        with pytest.raises(StableQuantError, match="smallest candidates take"):
            allocator.allocate(limit)
        return
    choice = allocator.allocate(limit)
    assert allocator.num_bytes(choice) <= limit
    assert allocator.cost(choice) == pytest.approx(min(inside))


def test_large_sizes_stay_within_the_limit():
    """Sizes are rounded up on the grid: a plan is never too large."""
    choices = [[(3_333_337 * b, 1.0 / b) for b in (2, 4, 8)] for _ in range(50)]
    allocator = allocator_of(choices)
    for limit in range(allocator.smallest, allocator.largest, 77_777_777):
        choice = allocator.allocate(limit)
        assert allocator.num_bytes(choice) <= limit
        # Nothing worth a step of any layer is left over.
        assert limit - allocator.num_bytes(choice) < 6 * 3_333_337


def test_the_smallest_plan_can_always_be_had():
    allocator = allocator_of([[(3_333_337, 1.0), (9_999_999, 0.1)]] * 40)
    choice = allocator.allocate(allocator.smallest)
    assert allocator.num_bytes(choice) == allocator.smallest


def test_of_equal_costs_the_smallest_is_taken():
    allocator = allocator_of([[(8, 0.0), (4, 0.0), (32, 0.0)]])
    assert allocator.num_bytes(allocator.allocate(40)) == 4


def test_a_layer_without_options_is_named():
    with pytest.raises(StableQuantError, match="'a' has no candidate"):
        Allocator({"a": []})

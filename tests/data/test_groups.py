from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from wagle_trainer.data.groups import even_rows, with_groups

groups = st.lists(st.integers(0, 6), min_size=1, max_size=40)


@given(groups, st.integers(1, 50))
def test_a_subset_is_even_over_the_groups(groups, number):
    rows = even_rows(groups, number)
    assert rows == sorted(set(rows))
    assert len(rows) == min(number, len(groups))
    sizes, taken = Counter(groups), Counter(groups[row] for row in rows)
    most = max(taken.values())
    # no group has two rows more than another one that has rows left
    assert all(taken[group] >= most - 1 or taken[group] == sizes[group] for group in sizes)
    assert rows == even_rows(groups, number)


def test_rows_about_all_authors():
    rows = Dataset.from_dict({"question": [f"{i}" for i in range(400)]})
    some = with_groups(rows, 20, 40)
    assert Counter(some["group"]) == dict.fromkeys(range(20), 2)
    assert some["question"][:2] == ["0", "10"]
    assert set(some["set_size"]) == {400}
    assert with_groups(rows, 20).column_names == ["question", "group"]
    assert with_groups(rows, None, 4)["question"][:] == ["0", "100", "200", "300"]
    named = rows.add_column("group", ["a"] * 399 + ["b"])
    assert with_groups(named, 20, 2)["question"][:] == ["0", "399"]


@pytest.mark.parametrize("limit", [0, "x", 2.5, True])
def test_a_limit_must_leave_a_row(limit):
    with pytest.raises(ValueError, match="limit must be at least 1, a whole number"):
        with_groups(Dataset.from_dict({"question": ["a"]}), None, limit)

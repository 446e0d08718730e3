"""Packed rows come back bit for bit, but for nulls."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.db.packing import first_of_each, last_of_each, pack, unpack_columns, unpack_rows
from tests.support.reports import trajectory

NUMBERS = st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | st.text(max_size=5) | st.booleans() | st.dictionaries(st.text(max_size=3), NUMBERS)
INNER = st.dictionaries(st.sampled_from("pqr"), NUMBERS)
ROWS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "a": VALUES,
            "b": NUMBERS,
            "updates": st.lists(INNER, max_size=3),
            "list": st.lists(NUMBERS),
        },
    ),
    max_size=6,
)


def without_nulls(row):
    kept = {name: value for name, value in row.items() if value is not None}
    if "updates" in kept:
        kept["updates"] = [without_nulls(update) for update in kept["updates"]]
    return kept


@pytest.mark.slow
@given(rows=ROWS)
def test_rows_come_back_without_their_nulls(rows):
    found = unpack_rows(pack(rows))
    assert len(found) == len(rows)
    for new, old in zip(found, rows, strict=True):
        kept = without_nulls(old)
        # a list that is missing beside others that have rows comes back empty
        assert {name: value for name, value in new.items() if value != []} == {
            name: value for name, value in kept.items() if value != []
        }


@given(rows=ROWS)
def test_the_first_and_the_last_of_a_list_without_unpacking_it(rows):
    updates = unpack_columns(pack(rows)).get("updates", [None] * len(rows))
    lists = [row.get("updates") or [] for row in rows]
    assert list(first_of_each(updates, "p")) == [found[0].get("p") if found else None for found in lists]
    assert list(last_of_each(updates, "p")) == [found[-1].get("p") if found else None for found in lists]


def test_a_step_takes_a_tenth_of_its_json():
    rows = [trajectory(index, reward=index / 7, p=1 - index / 1000) for index in range(128)]
    assert len(pack(rows)) < len(json.dumps(rows)) / 10

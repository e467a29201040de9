"""Two values, path by path."""

from typing import Any

import pytest

from worker.differences import NotThere, differences

ABSENT = NotThere.ABSENT


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": True}, [("$.a", 1, True)]),
        ({"a": None}, {}, [("$.a", None, ABSENT)]),
        ({}, {"a": None}, [("$.a", ABSENT, None)]),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}, [("$.a.b.c", 1, 2)]),
        ({"a": {"b c": 1}}, {"a": {"b c": 2}}, [("$.a['b c']", 1, 2)]),
        ({"a": [1, 2]}, {"a": [1, 3, 4]}, [("$.a[1]", 2, 3), ("$.a[2]", ABSENT, 4)]),
        ({"a": {"b": 1}}, {"a": [1]}, [("$.a", {"b": 1}, [1])]),
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, [("$.a", 1, ABSENT), ("$.b", 2, 3), ("$.c", ABSENT, 4)]),
    ],
)
def test_each_place_that_differs_is_found_once(
    before: Any, after: Any, found: list[tuple[str, Any, Any]]
) -> None:
    assert [(one.path, one.before, one.after) for one in differences(before, after)] == found

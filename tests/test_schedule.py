"""When the sparse path runs."""

import pytest

from dit_sparse.layout import Site, TokenLayout
from dit_sparse.schedule import Schedule

LAYOUT = TokenLayout(2, 32, 32)


def dense_steps(schedule, num_steps, total=10):
    return [
        s for s in range(total) if schedule.dense_reason(Site(5, s, num_steps), LAYOUT, 40) == "dense_step"
    ]


@pytest.mark.parametrize(
    ("value", "num_steps", "expected"),
    [
        (0, 10, []),
        (3, 10, [0, 1, 2]),
        (0.2, 10, [0, 1]),
        (0.2, 15, [0, 1, 2]),  # 0.2 * 15 is 3.0000000000000004 in floating point
        (0.25, 10, [0, 1, 2]),
        (0.01, 10, [0]),
        (0.0, 10, []),
        ([0, 9], 10, [0, 9]),
        (0.2, None, [0]),
        (4, None, [0, 1, 2, 3]),
    ],
)
def test_dense_steps(value, num_steps, expected):
    assert dense_steps(Schedule(dense_steps=value), num_steps) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("0-1,39", {0, 1, 39}), ([2], {2}), ("", set()), (0.03, {0}), (0.0, set()), (0.1, {0, 1, 2, 3})],
)
def test_dense_layers(value, expected):
    schedule = Schedule(dense_layers=value)
    found = {i for i in range(40) if schedule.dense_reason(Site(i, 0, 10), LAYOUT, 40) == "dense_layer"}
    assert found == expected


def test_short_sequences_stay_dense():
    schedule = Schedule(min_tokens=100)
    assert schedule.dense_reason(Site(0, 0), TokenLayout(1, 9, 11), 1) == "min_tokens"
    assert schedule.dense_reason(Site(0, 0), TokenLayout(1, 10, 10), 1) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dense_steps", -1),
        ("dense_steps", 1.0),
        ("dense_steps", "five"),
        ("dense_steps", [0, -2]),
        ("dense_steps", True),
        ("dense_layers", "3-1"),
        ("dense_layers", "a"),
        ("dense_layers", [1.5]),
        ("dense_layers", 2.0),
        ("refresh_interval", 0),
        ("min_tokens", -5),
    ],
)
def test_bad_values_are_quoted(field, value):
    with pytest.raises(ValueError, match=field) as caught:
        Schedule(**{field: value})
    assert repr(value) in str(caught.value) or str(value) in str(caught.value)

"""Ground truths become the text that graders read, and never Python's repr."""

import datetime
import decimal

import numpy as np
import pytest

from lenvm_rl.rollouts.record import truth_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("{'a': 1}", "{'a': 1}"),
        ({"a": None, "b": [1, 2.0]}, '{"a": null, "b": [1, 2.0]}'),
        ((1, "x"), '[1, "x"]'),
        (np.array(["x", "y"]), '["x", "y"]'),
        ({"a": np.int64(3)}, '{"a": 3}'),
        (decimal.Decimal("7"), "7"),
        (decimal.Decimal("0.5"), "0.5"),
        (b"abc", "abc"),
        ([b"abc"], '["abc"]'),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
        (None, None),
        (float("nan"), None),
        (False, "false"),
    ],
)
def test_truth_text(value, text):
    assert truth_text(value) == text


@pytest.mark.parametrize("value", [object(), b"\xff", {(1, 2): 3}])
def test_what_json_has_no_form_for_is_refused(value):
    with pytest.raises(ValueError, match="cannot be written as JSON"):
        truth_text(value)

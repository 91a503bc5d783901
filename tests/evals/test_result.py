"""A result reads back from its files."""

import json
import math

import pytest

from lenvm_rl.evals.result import Result


def test_files_of_a_result(tmp_path):
    tables = {"rows": [{"a": 1, "b": math.nan}, {"a": 2, "b": 0.5}], "none": []}
    result = Result("thing", {"x": math.inf, "y": {"z": 2}}, tables, [("y.z", "twos", "d")])
    paths = result.save(tmp_path / "out")
    assert [path.name for path in paths] == ["thing.json", "thing.jsonl", "thing_rows.csv"]
    assert result.to_dict() == {"x": None, "y": {"z": 2}}
    saved = json.loads(paths[0].read_text())
    assert saved == {"x": None, "y": {"z": 2}, "headline": [["y.z", "twos", "d"]]}
    assert paths[2].read_text().splitlines() == ["a,b", "1,nan", "2,0.5"]
    again = Result.load(paths[0])
    assert (again.name, again.figures) == ("thing", result.to_dict())
    assert again.headline == [("y.z", "twos", "d")]
    assert again.tables == {"rows": [{"a": 1, "b": None}, {"a": 2, "b": 0.5}]}


def test_a_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        Result("thing", {"x": object()}, {}).save(tmp_path)
    assert list(tmp_path.iterdir()) == []

"""Budgets for a verl data file: in the prompt, in the column, the same again with the same seed."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes" / "budget"))

import add_budgets  # noqa: E402

ROW = {
    "data_source": "toy",
    "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "2 + 2?"}],
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"index": 0},
}


def run(tmp_path, monkeypatch, *arguments):
    source, target = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(pa.Table.from_pylist([ROW] * 50), source)
    monkeypatch.setattr(sys, "argv", ["add_budgets.py", str(source), str(target), *arguments])
    add_budgets.main()
    return pq.read_table(target).to_pylist()


def test_random_budgets_are_said_and_stored(tmp_path, monkeypatch):
    rows = run(tmp_path, monkeypatch, "--low", "10", "--high", "20")
    assert {row["budget"] for row in rows} <= set(range(10, 21))
    assert len({row["budget"] for row in rows}) > 5
    for row in rows:
        n = row["budget"]
        assert row["prompt"][-1]["content"] == f"2 + 2? Think for at most {n} tokens."
        assert row["prompt"][0]["content"] == "s"
        assert row["extra_info"] == {"index": 0, "target": n}
    assert rows == run(tmp_path, monkeypatch, "--low", "10", "--high", "20")


def test_each_budget_for_every_prompt(tmp_path, monkeypatch):
    rows = run(tmp_path, monkeypatch, "--each", "100", "200")
    assert [row["budget"] for row in rows[:4]] == [100, 200, 100, 200] and len(rows) == 100


def test_a_prompt_without_a_user_message_is_refused():
    row = {**ROW, "prompt": [{"role": "assistant", "content": "x"}]}
    with pytest.raises(ValueError, match="does not end with a user message"):
        add_budgets.with_budget(row, 10, add_budgets.TEMPLATE)


@pytest.mark.parametrize("bounds", [("0", "5"), ("9", "3")])
def test_impossible_bounds_are_refused(tmp_path, monkeypatch, bounds, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path, monkeypatch, "--low", bounds[0], "--high", bounds[1])
    assert "need 0 < low <= high" in capsys.readouterr().err

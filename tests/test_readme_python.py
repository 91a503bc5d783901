"""The Python of the README runs as it stands, on fewer prompts."""

import re
from pathlib import Path

import pytest

from lenvm_rl.rollouts import RolloutReader

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "demo_prompts(300, seed=0)" in block and "epochs=4" in block
    monkeypatch.chdir(tmp_path)
    exec(
        block.replace("demo_prompts(300, seed=0)", "demo_prompts(24, seed=0)").replace(
            "epochs=4", "epochs=1"
        ),
        {},
    )
    assert len(re.findall(r"demo\S* [\d.]+", capsys.readouterr().out)) == 3
    rows = list(RolloutReader(tmp_path / "runs/python/equal-60").iter_rows())
    assert [row.guidance["lenvm_target"] for row in rows] == [60] * 8
    # so few prompts teach no lengths: that guidance keeps to them is tests/recipes/test_one_file.py

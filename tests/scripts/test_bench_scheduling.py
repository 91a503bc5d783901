"""The scheduling benchmark, in tiny: it trains once, simulates, and says what it needs."""

import json

import pytest

from scripts.bench.harness import main
from tests.scripts.test_bench_real_text import answers  # noqa: F401  (a fixture)


def test_it_trains_once_and_simulates(answers, tmp_path, capsys):  # noqa: F811
    words = ["--data", str(answers), "--out", str(tmp_path / "out"), "--quick"]
    assert main(["scheduling", *words]) == 0
    first = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert first["bench"] == "scheduling" and first["requests"] == 60
    assert first["share"]["1.1"]["predicted-true"] == 1.0
    assert {"linear", "prompt", "lenvm"} <= set(first["predictors"])
    checkpoint = tmp_path / "out" / "completions" / "config.json"
    stamp = checkpoint.stat().st_mtime_ns
    assert main(["scheduling", *words, "--json", str(tmp_path / "line.json")]) == 0
    again = json.loads((tmp_path / "line.json").read_text())
    assert checkpoint.stat().st_mtime_ns == stamp  # what was trained is kept
    assert again["share"] == first["share"]


def test_it_says_what_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["scheduling", "--out", "x"])
    assert "either --data, or --lenvm and --rollouts" in capsys.readouterr().err

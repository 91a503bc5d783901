"""Memory does not follow the size of a rollout file."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_peak_memory_is_flat(tmp_path):
    """The benchmark at small scale: 6 times the tokens, the same peak. Imports are taken off."""
    command = [sys.executable, "-m", "scripts.bench", "rollouts", "--tokens", "1e6,6e6"]
    command += ["--window-rows", "512"]
    command += ["--dir", str(tmp_path), "--json", str(tmp_path / "bench.json")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures == json.loads((tmp_path / "bench.json").read_text())
    small, large = figures["sizes"]
    assert large["tokens"] > 5.9 * small["tokens"]
    for task in ("stream", "report"):
        assert large[task]["seen_rows"] == large["rows"]
        assert figures[f"{task}_flat_ratio"] < 1.2
        # Far less than the data set grew by.
        assert figures[f"{task}_flat_ratio_above_import"] < 1.5
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.json"], "data is left behind"


@pytest.mark.slow
def test_the_stream_beside_the_libraries_goes_on_exactly(tmp_path):
    """The benchmark at small scale: each row once, and a new process goes on with the next one."""
    command = [sys.executable, "-m", "scripts.bench", "stream", "--tokens", "3e5,6e5"]
    command += ["--readers", "stream,mapped", "--dir", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    for size in json.loads(done.stdout.splitlines()[-1])["sizes"]:
        for reader in ("stream", "mapped"):
            assert size[reader]["rows"] == size["file"]["rows"]
            assert size[reader]["exact"] and size[reader]["twice_or_never"] == 0
    assert list(tmp_path.iterdir()) == [], "data is left behind"

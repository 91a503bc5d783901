"""The child process that trains: its progress is read, its failure and its silence are reported."""

import sys
import time

import pytest
from rich.console import Console

from lenvm_rl.demo import launch

FINE = 'for i in (1, 2): print(f"noise step:{i} - critic/mse:0.5 - x:1", flush=True)'
FAILS = 'print("the reason"); raise SystemExit(3)'
SILENT = "import time; time.sleep(60)"


def start(tmp_path, monkeypatch, script, **settings):
    """Run `script` in place of verl's entry point."""
    real = launch.subprocess.Popen

    def popen(command, **kwargs):
        assert command[1:3] == ["-m", "verl.trainer.main_ppo"] and command[-1] == "a=b"
        return real([sys.executable, "-c", script], **kwargs)

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    launch.run_trainer(
        ["a=b"],
        config_dir=tmp_path,
        config_name="demo",
        log_file=tmp_path / "logs" / "train.log",
        steps=2,
        metric="critic/mse",
        console=Console(quiet=True),
        **settings,
    )


def test_output_goes_to_the_log(tmp_path, monkeypatch):
    start(tmp_path, monkeypatch, FINE)
    assert "step:2 - critic/mse:0.5" in (tmp_path / "logs" / "train.log").read_text()


def test_a_failure_shows_the_end_of_the_log(tmp_path, monkeypatch):
    with pytest.raises(launch.TrainingFailed, match=r"exit 3(.|\n)*the reason"):
        start(tmp_path, monkeypatch, FAILS)


def test_a_silent_child_is_stopped(tmp_path, monkeypatch):
    began = time.monotonic()
    with pytest.raises(launch.TrainingFailed, match="printed nothing for 1 s"):
        start(tmp_path, monkeypatch, SILENT, silent_after_s=1.0)
    assert time.monotonic() - began < 30


def test_the_recipes_are_found():
    assert (launch.recipes_dir() / "pretrain" / "demo.yaml").is_file()

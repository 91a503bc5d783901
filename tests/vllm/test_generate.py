"""`lenvm generate`: one mode at a time, and a rollout file of guided completions."""

import json
import subprocess
import sys

import pytest

from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.scoring import GuidanceSettings
from lenvm_rl.vllm.generate import guidance_of, prompts_of_rollouts


def test_one_mode_is_chosen():
    nothing = dict.fromkeys(("equal", "at_most", "at_least", "tilt", "scale"))
    assert guidance_of(nothing) == GuidanceSettings()
    chosen = guidance_of({**nothing, "equal": 120}, top_k=9)
    assert (chosen.mode, chosen.target, chosen.top_k) == ("equal", 120, 9)
    assert guidance_of({**nothing, "equal": 120}, soft=True).mode == "equal_soft"
    assert guidance_of({**nothing, "tilt": -5.0}).beta == -5.0
    assert guidance_of({**nothing, "scale": 0.5}).scale == 0.5


@pytest.mark.parametrize(
    ("asked", "soft"), [({"equal": 1, "at_most": 2}, False), ({"at_most": 2}, True), ({}, True)]
)
def test_two_modes_at_once_are_refused(asked, soft):
    with pytest.raises(ValueError, match="choose one of"):
        guidance_of(asked, soft=soft)


@pytest.mark.slow
def test_prompts_become_guided_completions_and_those_new_ones(vllm, lenvm, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    words = [
        sys.executable,
        "-m",
        "lenvm_rl.cli",
        "generate",
        "--model",
        "demo",
        "--lenvm",
        str(lenvm),
        "--max-tokens",
        "60",
    ]
    words += ["--prompts", "demo:6", "--at-most", "20", "-n", "2", "--out", str(tmp_path / "out")]
    result = subprocess.run(words, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.strip().splitlines()[-1])
    rows = list(RolloutReader(tmp_path / "out").iter_rows())
    assert (report["rows"], report["prompts"], len(rows)) == (12, 6, 12)
    for row in rows:
        assert row.length <= 20 + (row.finish_reason == "stop")
        assert len(row.response_logprobs) == row.length
        assert all(logprob <= 1e-6 for logprob in row.response_logprobs)
    again = list(prompts_of_rollouts(tmp_path / "out"))
    assert [row.prompt_id for row in again] == [f"demo-0-{i}" for i in range(6)]

"""Does the whole evaluation run from directories on disk, and does it continue after a kill?"""

import json

import pytest
import torch

from lenvm_rl.evals.prediction.evaluate import Settings, run
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.transformers.engine import sample_to_file
from tests.sampling.test_sampling import SETTINGS, prompts


@pytest.fixture(scope="module")
def files(tiny_policy, tmp_path_factory):
    """A LenVM on the policy's trunk, and rollouts of the policy."""
    root = tmp_path_factory.mktemp("run")
    sample_to_file(tiny_policy, prompts(8), root / "train", **SETTINGS)
    sample_to_file(tiny_policy, prompts(5), root / "heldout", **{**SETTINGS, "seed": 1})
    torch.manual_seed(0)
    tokenizer = load_tokenizer(tiny_policy)
    policy = describe_policy(str(tiny_policy), tokenizer)
    model = LengthValueModel.from_policy(tiny_policy, gamma=0.9, policy=policy)
    save_checkpoint(model, tokenizer, root / "lenvm")
    return root


@pytest.mark.filterwarnings("ignore:.*were truncated by the token limit")
def test_run_prediction_measures_saves_and_resumes(files, tiny_policy, tmp_path):
    out = tmp_path / "prediction"
    arguments = {
        "train": files / "train",
        "policy": tiny_policy,
        "settings": Settings(states=6, continuations=4, seed=3),
    }
    report = run(files / "lenvm", files / "heldout", out, **arguments)
    figures = report.to_dict()
    assert figures["prompts"] == 5 and figures["completions"] == 20
    assert figures["states"] == 6 and figures["continuations_per_state"] == 4
    assert figures["gamma"] == 0.9
    assert {"mre_s0", "mre_noise_floor", "mre_naive_mean", "mre_naive_linear"} <= set(figures)
    saved = json.loads((out / "prediction.json").read_text())
    assert saved.pop("headline")[0][0] == "mre_s0" and saved == figures
    shards = sorted((out / "states").glob("*.parquet"))
    stamps = [shard.stat().st_mtime_ns for shard in shards]
    again = run(files / "lenvm", files / "heldout", out, **arguments)
    assert again.to_dict() == figures
    assert [shard.stat().st_mtime_ns for shard in shards] == stamps  # nothing was sampled again
    assert len(RolloutReader(out / "states")) == 24


@pytest.mark.filterwarnings("ignore:.*were truncated by the token limit")
def test_without_policy_and_training_file_the_rest_is_measured(files, tmp_path):
    report = run(files / "lenvm", files / "heldout", tmp_path / "out")
    assert "r2_monte_carlo" not in report.figures and "mre_naive_mean" not in report.figures
    assert report.figures["mre_s0"] > 0
    assert not (tmp_path / "out" / "states").exists()


@pytest.mark.filterwarnings("ignore:.*were truncated by the token limit")
def test_a_probe_is_fitted_on_other_prompts_than_those_it_is_judged_on(
    files, tiny_policy, tmp_path
):
    """Of the 8 training prompts 5 are held out as well: the probe sees the other 3 alone."""
    rows = RolloutReader(files / "train").iter_rows()
    held = {tuple(row.prompt_ids) for row in RolloutReader(files / "heldout").iter_rows()}
    others = [row for row in rows if tuple(row.prompt_ids) not in held]
    assert 0 < len(others) < len(RolloutReader(files / "train"))
    settings = Settings(inside=2, probe_states=1000, seed=3)
    more = {"train": files / "train", "probe": tiny_policy, "settings": settings}
    figures = run(files / "lenvm", files / "heldout", tmp_path / "out", **more).figures
    assert figures["probe_completions"] == len(others)
    assert figures["mre_probe"] > 0 and figures["kendall_tau_probe"] <= 1
    with pytest.raises(ValueError, match=r"--probe .* is fitted on .* give them \(--train\)"):
        run(files / "lenvm", files / "heldout", tmp_path / "x", probe=tiny_policy)


def test_settings_that_measure_nothing_are_refused():
    for name in ("inside", "probe_states", "states"):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            Settings(**{name: 0})


def test_a_plain_language_model_is_refused(files, tiny_policy, tmp_path):
    with pytest.raises(ValueError, match="holds no LenVM"):
        run(tiny_policy, files / "heldout", tmp_path / "out")

"""The steps train, heads and prediction: their commands, what they read, the bars."""

import json

import pytest

from lenvm_rl.demo.launch import TrainingFailed
from lenvm_rl.evals.result import Result
from lenvm_rl.model import LengthValueModel, describe_policy, save_checkpoint
from lenvm_rl.rollouts import Rollout, RolloutWriter
from recipes.smollm2 import heads, prediction, train
from recipes.smollm2.results import Step, StepFailed
from tests.tiny import make_policy, make_tokenizer

LOG = """
(TaskRunnerV1 pid=7) step:1 - critic/mse:0.25 - perf/tokens_per_second:30.0 - val/mre_s0:0.9
an other line, step:9
(TaskRunnerV1 pid=7) step:2 - critic/mse:1.5e-02 - perf/tokens_per_second:50.0
(TaskRunnerV1 pid=7) step:3 - critic/mse:0.125 - perf/tokens_per_second:40.0 - \
val/relative_error/00:0.5 - val/mre_s0:0.75 - val/mre_s0_noise_floor:nan
"""


@pytest.fixture
def lenvm(tmp_path):
    """A small LenVM where the step train leaves it."""
    make_policy("llama", num_hidden_layers=3).save_pretrained(tmp_path / "policy")
    model = LengthValueModel.from_policy(
        tmp_path / "policy", layers=2, gamma=0.9, policy=describe_policy("tiny", make_tokenizer())
    )
    return save_checkpoint(model, make_tokenizer(), tmp_path / "checkpoint" / "lenvm")


@pytest.fixture
def asked(monkeypatch):
    """Commands that a step asks for, in place of running them; answers by the command's name."""
    found, answers = [], {}

    def run(self, *words, env=None):
        found.append([str(word) for word in words])
        if "--json" in found[-1]:
            file = found[-1][found[-1].index("--json") + 1]
            with open(file, "w") as out:
                json.dump(answers[words[0]], out)
        return answers.get(words[0], {})

    monkeypatch.setattr(Step, "lenvm", run)
    return found, answers


def rollouts(path, count):
    with RolloutWriter(path, tokenizer_sha="tiny", vocab_size=48, eos_ids=[1]) as writer:
        writer.append(
            [
                Rollout(
                    prompt_id=str(i),
                    sample_id=0,
                    prompt_ids=[2],
                    response_ids=[3, 1],
                    finish_reason="stop",
                )
                for i in range(count)
            ]
        )


def value_of(words, option):
    return words[words.index(option) + 1]


def test_what_verl_prints_is_read():
    found = train.last_metrics(LOG)
    assert found["steps"] == 3 and found["tokens_per_s"] == 40.0 and found["mse"] == 0.125
    assert found["val"] == {"mre_s0": 0.75, "relative_error/00": 0.5}
    assert train.last_metrics("")["tokens_per_s"] is None


def test_training_splits_makes_the_trunk_and_runs_the_recipe(tmp_path, lenvm, asked, monkeypatch):
    ran = {}

    def trainer(words, *, log_file, steps, **settings):
        ran.update(settings, words=words, steps=steps)
        log_file.write_text(LOG)

    monkeypatch.setattr(train, "run_trainer", trainer)
    rollouts(tmp_path / "rollouts" / "fit", 70)
    result = train.run(tmp_path, layers=2, epochs=3, override=["critic.optim.lr=1e-4"], seed=5)
    commands = asked[0]
    assert [words[0] for words in commands] == ["split", "init"]
    assert value_of(commands[1], "--layers") == "2" and value_of(commands[1], "--seed") == "5"
    assert ran["steps"] == 7 and ran["config_name"] == "smollm2"  # 210 completions of 32 a step
    given = dict(word.split("=", 1) for word in ran["words"])
    assert given["trainer.total_epochs"] == "3" and given["critic.optim.lr"] == "1e-4"
    assert given["lenvm.train_rollouts"] == str(tmp_path / "rollouts" / "fit")
    assert result["lenvm"] == str(tmp_path / "lenvm") and (tmp_path / "lenvm").resolve() == lenvm
    assert result["gamma"] == 0.9 and result["trunk"]["layers"] == 2 and result["steps"] == 3
    assert "recipes/pretrain/run.sh smollm2" in result["commands"][-1]["command"]


def test_a_training_that_fails_ends_the_step(tmp_path, lenvm, asked, monkeypatch):
    def trainer(words, **settings):
        raise TrainingFailed("pretraining failed (exit 1).")

    monkeypatch.setattr(train, "run_trainer", trainer)
    rollouts(tmp_path / "rollouts" / "fit", 4)
    with pytest.raises(StepFailed, match="pretraining failed"):
        train.run(tmp_path)
    assert not (tmp_path / "results").exists()


def test_heads_are_distilled_on_both_trunks_and_measured(tmp_path, lenvm, asked):
    (tmp_path / "lenvm").symlink_to(lenvm)
    (tmp_path / "heads").mkdir()
    commands, answers = asked
    before, after = {"rmse": 0.3}, {"rmse": 0.1}
    answers["distill"] = {"steps": 9, "states": 5, "before": before, "after": after}
    answers["eval"] = {"mre_s0": 0.4}
    result = heads.run(tmp_path, steps=9)
    assert [words[0] for words in commands] == ["distill", "eval", "init", "distill", "eval"]
    assert "--student" not in commands[0] and "--freeze-trunk" in commands[2]
    assert value_of(commands[2], "--gamma") == "0.9"
    assert value_of(commands[3], "--student") == value_of(commands[2], "--out")
    assert result["own"]["after"] == after and result["policy"]["mre_s0"] == 0.4


def test_prediction_reads_figures_and_tables(tmp_path, asked):
    positions = [
        {"position": at, "predictor": name, "relative_error": error}
        for at, errors in {
            0.0: {"lenvm": 9.0, "mean": 1.0, "probe": 0.1},
            0.5: {"lenvm": 0.5, "mean": 1.0, "survival": 0.6, "probe": 0.1},
            0.9: {"lenvm": 0.7, "mean": 1.0, "survival": 0.6, "probe": 0.1},
        }.items()
        for name, error in errors.items()
    ]
    domains = [{"domain": "ifeval", "predictor": "lenvm", "mre": 0.3}]
    tables = {"positions": positions, "domains": domains}
    Result("prediction", {}, tables).save(tmp_path / "prediction")
    ends = [
        f"{corrected}{end}" for corrected in ("", "_corrected") for end in ("", "_low", "_high")
    ]
    figures = {
        "prompts": 2,
        "samples_per_prompt": 32.0,
        "share_truncated": 0.2,
        "mre_noise_floor": 0.06,
        "best_naive": "source",
        **{f"share_of_best_naive{end}": 0.65 for end in ("", "_low", "_high")},
        **{f"mre_{key}{end}": 0.3 for key in ("s0", "naive_source") for end in ends},
    }
    asked[1]["eval"] = figures
    result = prediction.run(tmp_path, inside=3)
    words = asked[0][0]
    assert value_of(words, "--probe") == str(tmp_path / "policy")
    assert value_of(words, "--inside") == "3"
    assert result["bars"] == {"s0": True, "50 %": True, "90 %": False}
    assert set(result["at_prompt"]) == {"lenvm", "source"}
    assert result["by_position"] == positions and result["by_source"] == domains

"""`lenvm eval all` calls every evaluation as its own command does, and reports at the end."""

import inspect

import pytest

from lenvm_rl.cli import eval_all
from lenvm_rl.evals.result import save_results
from tests.command_line import invoke

COMMANDS = {
    "prediction": "eval_prediction",
    "length-tokens": "eval_length_tokens",
    "scheduling": "eval_scheduling",
    "tradeoff": "eval_tradeoff",
    "control": "eval_control",
    "lifebench": "eval_lifebench",
    "scaling": "eval_scaling",
    "ablation": "eval_ablation",
}


@pytest.fixture
def calls(monkeypatch):
    """Commands replaced by ones that take what the real ones take, and write a result."""
    made = {}

    def stand_in(name, real):
        signature = inspect.signature(real)

        def command(**given):
            signature.bind(**given)  # a missing or unknown option is a TypeError
            made[name] = given
            if name == "control":
                raise ValueError("no room left")
            save_results(given["out"], name, {"number": 1.5}, {"rows": [{"a": 1}]})

        return command

    for name, function in COMMANDS.items():
        monkeypatch.setattr(eval_all, function, stand_in(name, getattr(eval_all, function)))
    monkeypatch.setattr(eval_all, "_sampled", lambda part, *rest: f"{part}-rollouts")
    return made


def run(*words):
    words = ["eval", "all", "--policy", "demo", "--lenvm", "demo", *map(str, words)]
    result = invoke(*words)
    return result.exit_code, result.figures


def test_every_evaluation_gets_its_options_and_a_failure_is_told(calls, tmp_path):
    status, figures = run("--out", tmp_path, "--seed", 3)
    assert list(calls) == list(eval_all.NAMES) == list(COMMANDS)
    assert status == 1 and figures["failed"] == {"control": "no room left"}
    assert calls["prediction"]["rollouts"] == "heldout-rollouts"
    assert calls["scaling"]["rollouts"] == "train-rollouts"
    assert all(given["out"] == tmp_path / name for name, given in calls.items())
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card"') == 7
    calls.clear()
    status, figures = run("--out", tmp_path, "--seed", 3)
    assert list(calls) == ["control"] and len(figures["kept"]) == 7


def test_only_some(calls, tmp_path):
    status, figures = run("--out", tmp_path, "--only", "scheduling,prediction")
    assert status == 0 and list(calls) == ["prediction", "scheduling"]
    assert set(figures["seconds"]) == {"prediction", "scheduling"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--policy", "demo", "--lenvm", "demo", "--only", "all"], "there are prediction, length"),
        (["--policy", "other", "--lenvm", "demo"], "--prompts is missing"),
        (["--policy", "demo", "--lenvm", "nowhere"], r"nowhere holds no LenVM"),
    ],
)
def test_mistakes_end_with_a_sentence(words, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        invoke("eval", "all", *words, "--out", tmp_path)


@pytest.mark.slow
def test_two_real_evaluations_of_the_shipped_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(eval_all, "HELDOUT_PROMPTS", 8)
    monkeypatch.setattr(eval_all, "TRAIN_PROMPTS", 8)
    monkeypatch.setitem(eval_all.SIZES, "scheduling", {"requests": 40, "seeds": 1})
    status, figures = run("--out", tmp_path, "--only", "length-tokens,scheduling")
    assert status == 0 and not figures["failed"] and not figures["broken"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card"') == 2 and "data:image/png;base64," in page

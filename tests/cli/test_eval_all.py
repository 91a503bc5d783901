"""`lenvm eval all` calls every evaluation as its own command does, and reports at the end."""

import pytest

from lenvm_rl.cli import eval_all
from lenvm_rl.evals import EVALUATIONS, Entry
from lenvm_rl.evals.result import Result
from tests.cli.command_line import invoke

CALLS = {}


def stand_in(name):
    """An evaluation that notes what it is given and writes a result; `tradeoff` fails."""

    def reads_rollouts(lenvm, rollouts, out, *, train=None, policy=None, seed: int = 0):
        return done(lenvm=lenvm, rollouts=rollouts, out=out, train=train, policy=policy)

    def asks_prompts(policy: str, prompts: str, out, *, lenvm=None, n: int = 8, seed: int = 0):
        return done(policy=policy, prompts=prompts, out=out, lenvm=lenvm, n=n)

    def done(**given):
        CALLS[name] = given
        if name == "tradeoff":
            raise ValueError("no room left")
        result = Result(name, {"number": 1.5}, {"rows": [{"a": 1}]})
        result.save(given["out"])
        return result

    return asks_prompts if name in ("tradeoff", "length-control") else reads_rollouts


@pytest.fixture
def calls(monkeypatch):
    for name in EVALUATIONS:
        attribute = name.replace("-", "_")
        monkeypatch.setitem(globals(), f"run_{attribute}", stand_in(name))
        entry = Entry("", f"{__name__}:run_{attribute}", f"{__name__}:view", f"{__name__}:SMALL")
        if name in ("tradeoff", "length-control"):
            entry = entry._replace(small=f"{__name__}:SMALL_PROMPTS")
        monkeypatch.setitem(EVALUATIONS, name, entry)
    monkeypatch.setattr(eval_all, "_sampled", lambda *given: f"{given[-1]}-rollouts")
    CALLS.clear()
    return CALLS


SMALL, SMALL_PROMPTS = {}, {"prompts": "demo:3", "n": 2}


def view(result):
    return f"view of {result.name}"


def run(*words):
    result = invoke("eval", "all", "--policy", "demo", "--lenvm", "demo", *words)
    return result, result.figures


def test_every_evaluation_gets_its_options_and_a_failure_is_told(calls, tmp_path):
    ran, figures = run("--out", tmp_path, "--seed", 3)
    assert list(calls) == list(EVALUATIONS)
    assert ran.exit_code == 1 and figures["failed"] == {"tradeoff": "no room left"}
    assert "FAILED tradeoff: no room left" in ran.stderr and "view of scheduling" in ran.stdout
    assert calls["prediction"]["rollouts"] == "heldout-rollouts"
    assert calls["prediction"]["train"] == "train-rollouts"
    assert calls["length-control"]["prompts"] == "demo:3" and calls["length-control"]["n"] == 2
    assert all(given["out"] == tmp_path / name for name, given in calls.items())
    assert all(given["policy"].endswith("policy") for given in calls.values())
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card"') == len(EVALUATIONS) - 1
    calls.clear()
    ran, figures = run("--out", tmp_path, "--seed", 3)
    assert list(calls) == ["tradeoff"] and len(figures["kept"]) == len(EVALUATIONS) - 1


def test_only_some(calls, tmp_path):
    ran, figures = run("--out", tmp_path, "--only", "scheduling,prediction")
    assert ran.exit_code == 0 and list(calls) == ["prediction", "scheduling"]
    assert set(figures["seconds"]) == {"prediction", "scheduling"}


def test_another_policy_brings_its_prompts(calls, tmp_path):
    words = ("--policy", "other", "--prompts", "gsm8k", "--only", "length-control")
    assert run("--out", tmp_path, *words)[0].exit_code == 0
    assert calls["length-control"]["prompts"] == "gsm8k"
    assert calls["length-control"]["policy"] == "other"


def test_as_many_unseen_prompts_as_its_page_says(monkeypatch, tmp_path):
    sampled = {}
    monkeypatch.setattr(
        "lenvm_rl.sampling.transformers.engine.sample_to_file",
        lambda policy, prompts, folder, **given: sampled.update({folder.name: prompts}),
    )
    for part in ("train", "heldout"):
        eval_all._sampled("demo", None, tmp_path, 0, part)
    asked = {part: {str(p.messages) for p in prompts} for part, prompts in sampled.items()}
    assert len(asked["heldout"]) == eval_all.HELDOUT_PROMPTS
    assert not asked["heldout"] & asked["train"]


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
def test_two_real_evaluations_of_the_demo_policy(tmp_path, monkeypatch):
    monkeypatch.setattr(eval_all, "HELDOUT_PROMPTS", 8)
    monkeypatch.setattr(eval_all, "TRAIN_PROMPTS", 8)
    ran, figures = run("--out", tmp_path, "--only", "length-tokens,scheduling")
    assert ran.exit_code == 0 and not figures["failed"] and not figures["broken"]
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="card"') == 2 and "data:image/png;base64," in page

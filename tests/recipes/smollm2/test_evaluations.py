"""Steps that evaluate: the commands that they run, what is kept, what must be there before."""

import json

import pytest

from lenvm_rl.evals.result import Result
from lenvm_rl.prompts.prompt import Prompt, read_prompts, write_prompts
from lenvm_rl.rollouts import Rollout, RolloutWriter
from recipes.smollm2 import control, cost, tradeoff, view
from recipes.smollm2.results import Step
from scripts.bench import harness
from tests.cli.test_documented import wrong

QUALITY = {"logprob": -1.23456789, "repetition": 0.25, "full_sentence": 1.0}
SCORES = {"completions": 2, "score": 64.81239, "deviation": 40.0, "failed": 0.0, "ended": 1.0}
ROW = {"control": "equal", "method": "guided", "length": 30.0, **SCORES, **QUALITY}
CONTROL = Result(
    "length_control",
    {"prompts": 2, "samples": 1, "targets": [32]},
    {
        "summary": [{**ROW, "accuracy": None}],
        "targets": [{**ROW, "goal": "32"}],
        "languages": [{**ROW, "language": "en"}],
    },
)
CURVE = {"length": 20.0, "accuracy": 0.3, **QUALITY}
TRADEOFF = Result(
    "tradeoff",
    {
        "prompts": 2,
        "unguided_accuracy": 0.4,
        "unguided_length": 200.0,
        "half_accuracy_length": 120.0,
        "accuracy_kept_there": 0.95,
    },
    {
        "guided": [{"beta": -6.0, **CURVE, "accuracy_se": 0.1, "budget_accuracy": None}],
        "budget": [{"budget": 9, **CURVE}],
    },
)


@pytest.fixture
def dir(tmp_path):
    """A directory in which all steps before have been done; held-out prompts p0 to p3 have two
    completions each, of which p1 ends none and p2 one."""
    for name in ("policy", "lenvm", "heads/trunk", "heads/states"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    messages = [{"role": "user", "content": "q"}]
    prompts = [Prompt(prompt_id=f"p{i}", messages=messages) for i in range(4)]
    for name in ("train", "heldout"):
        write_prompts(prompts, tmp_path / "prompts" / f"{name}.jsonl")
    open_ended = {("p1", 0), ("p1", 1), ("p2", 0)}
    with RolloutWriter(tmp_path / "rollouts" / "heldout", tokenizer_sha="x", eos_ids=[1]) as file:
        for key in ((f"p{i}", k) for i in range(4) for k in range(2)):
            ids, reason = ([5], "length") if key in open_ended else ([5, 1], "stop")
            row = Rollout(
                prompt_id=key[0],
                sample_id=key[1],
                prompt_ids=[3],
                response_ids=ids,
                finish_reason=reason,
            )
            file.append([row])
    return tmp_path


@pytest.fixture
def lines(monkeypatch):
    """The command lines of a step, in which `lenvm eval` finds what is above."""
    found = []

    def lenvm(step, *words):
        words = list(map(str, words))
        found.append(" ".join(["lenvm", *words]))
        assert wrong(found[-1]) == ""
        result = {"length-control": CONTROL, "tradeoff": TRADEOFF}.get(words[1])
        if result is None:
            return {"words": words[0]}
        result.save(words[words.index("--out") + 1])
        return dict(result.figures)

    def run(step, shown, words):
        found.append(" ".join(map(str, shown)))
        options = harness.parse("engine", list(map(str, shown[4:])))
        assert options.streams == (1, 4, 16)
        figures = {"prompts": 48, "rows": [{"engine": "none"}], "machine": {"load_average": [2]}}
        return "a table\n" + json.dumps(figures) + "\n"

    monkeypatch.setattr(Step, "lenvm", lenvm)
    monkeypatch.setattr(Step, "run", run)
    return found


def test_control_asks_for_fixed_targets_and_for_each_prompts_own(dir, lines):
    result = control.run(dir, place=["lifebench@data/l.jsonl"], lifebench=5, own=3, seed=7)
    equal, bounds, own = lines
    for line in (equal, bounds):
        assert "--prompts lifebench@data/l.jsonl --limit 5 --targets 32,64,128,256,512" in line
    assert "--controls equal --methods unguided,guided,truncated,countdown" in equal
    assert "--controls at_most,at_least --methods unguided,guided,truncated" in bounds
    assert f"--prompts {dir}/prompts/control.jsonl --quantiles 0.25,0.5,0.75" in own
    chosen = read_prompts(dir / "prompts" / "control.jsonl")
    assert [prompt.prompt_id for prompt in chosen] == ["p0", "p2", "p3"]
    with pytest.raises(ValueError, match="has 3 prompts of which at least half"):
        control.run(dir, own=4)
    assert all("--temperature 0.8 --top-p 0.95 --min-p 0 " in line for line in lines)
    [summary] = result["equal"]["summary"]
    assert summary["score"] == 64.8124 and summary["logprob"] == -1.2346
    assert result["own"]["languages"][0]["language"] == "en"
    assert json.loads((dir / "results" / "control.json").read_text()) == result


def test_the_trade_off_leaves_training_prompts_out(dir, lines):
    result = tradeoff.run(dir, place=["ifeval@data/i.jsonl"], prompts=5, n=2)
    prompts, evaluation = lines
    assert f"ifeval_rules --source data/i.jsonl --exclude {dir}/prompts/train.jsonl" in prompts
    assert f"--prompts {dir}/prompts/tradeoff.jsonl --betas=-100," in evaluation
    assert (result["task"], result["accuracy_kept_there"]) == ("ifeval_rules", 0.95)
    assert result["task_fits"], "40 % are right unguided"
    assert result["guided"][0]["beta"] == -6 and result["budget"][0]["full_sentence"] == 1


def test_cost_times_the_heads_that_are_there(dir, lines):
    result = cost.run(dir)
    assert f"--heads {dir}/heads/states {dir}/heads/trunk --prompts" in lines[0]
    assert result["rows"] == [{"engine": "none"}] and result["load"] == {"load_average": [2]}
    cost.run(dir, heads=["mine"])
    assert "--heads mine --prompts" in lines[1]


def test_pages_show_one_answer_of_each_prompt(dir, lines):
    result = view.run(dir, answers=4)
    assert [line.split()[1] for line in lines] == ["sample", "view", "view"]
    assert f"--rollouts {dir}/rollouts/heldout --per-prompt 1 --limit 4" in lines[1]
    assert set(result) >= {"answers", "thinking"}


@pytest.mark.parametrize(
    ("step", "missing", "made_by"),
    [
        (control, "lenvm", "train"),
        (tradeoff, "policy", "fetch"),
        (cost, "prompts/heldout.jsonl", "sample"),
        (view, "rollouts/heldout", "sample"),
    ],
)
def test_what_is_missing_is_named_with_the_step_that_makes_it(dir, lines, step, missing, made_by):
    (dir / missing).rename(dir / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"{missing} is missing: .*smollm2 {made_by}"):
        step.run(dir)


def test_sizes_below_one_are_refused(dir):
    for step, size in ((control, "lifebench"), (control, "own"), (view, "answers")):
        with pytest.raises(ValueError, match=f"--{size} must be at least 1"):
            step.run(dir, **{size: 0})

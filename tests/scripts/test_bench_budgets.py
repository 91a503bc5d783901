"""bench/budgets.py: prompts with budgets, the two advantages, the warm-up, a tiny whole bench."""

import json
from dataclasses import replace

import pytest
import torch

from lenvm_rl.demo import policy_path, task
from lenvm_rl.model import (
    LengthValueModel,
    describe_policy,
    load_tokenizer,
    save_checkpoint,
)
from lenvm_rl.sampling.transformers.sampler import Completion
from scripts.bench import budgets as bench_budgets
from scripts.bench.budgets import (
    BudgetSettings,
    advantage_of,
    budget_rows,
    budget_world,
    deviation,
    figures_of,
)
from scripts.bench.grpo.methods import Graded, task_advantage
from scripts.bench.grpo.warm_up import asked, hindsight
from scripts.bench.harness import main

TINY = (
    "--updates 2 --prompts 2 --samples 3 --max-tokens 48 --pool 4 --eval-prompts 2 "
    "--eval-samples 2 --warm-problems 48 --seeds 1 --jobs 0 --methods l1_exact,lenvm"
)
SMALL = BudgetSettings(pool=40, eval_prompts=3, eval_samples=1, low=20, high=60)


@pytest.fixture(scope="module")
def lenvm(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(policy_path())
    policy = describe_policy(str(policy_path()), tokenizer)
    model = LengthValueModel.from_policy(policy_path(), policy=policy, gamma=0.98)
    path = tmp_path_factory.mktemp("lenvm") / "model"
    save_checkpoint(model, tokenizer, path)
    return path


def question(prompt):
    return prompt.messages[0]["content"]


def graded(lengths, correct, budgets):
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    names = [f"p{i // 2}" for i in range(len(lengths))]
    left = torch.tensor(lengths)[:, None] - torch.arange(max(lengths))
    return Graded(
        correct=correct,
        lengths=lengths,
        prompt_ids=names,
        mask=mask,
        finished=torch.ones(len(lengths), dtype=torch.bool),
        values=-0.5 * mask,
        lengths_left=left.clamp(min=0).float(),
        gamma=0.98,
        answers="all",
        columns={n: {"target": b} for n, b in zip(dict.fromkeys(names), budgets, strict=True)},
    )


def test_every_problem_has_one_budget_in_training_and_all_of_them_held_out():
    world = budget_world(SMALL)
    budgets = [world.columns[p.prompt_id]["target"] for p in world.pool]
    assert min(budgets) >= 20 and max(budgets) <= 60 and len(set(budgets)) > 10
    for prompt, budget in zip(world.pool, budgets, strict=True):
        assert question(prompt).startswith(f"about {budget:.0f} tokens: ")
    held = [world.columns[p.prompt_id]["target"] for p in world.held]
    assert held == [30.0, 60.0, 120.0, 180.0] * 3
    problems = [question(p).split(" tokens: ")[1] for p in world.held]
    assert len(set(problems)) == 3 and len(set(problems[:4])) == 1
    seen = {question(p).split(" tokens: ")[1] for p in world.pool}
    assert not seen & set(problems)


def test_l1_exact_pays_for_the_prompts_own_budget():
    batch = graded([10, 20, 10, 20], [1.0, 1.0, 1.0, 0.0], [20.0, 10.0])
    a = advantage_of("l1_exact", BudgetSettings(alpha=0.01))(batch)
    rewards = [0.9, 1.0, 1.0, -0.1]
    wanted = task_advantage(rewards, batch.prompt_ids)[:, None] * batch.mask
    torch.testing.assert_close(a, wanted)
    assert deviation(batch)["deviation"] == pytest.approx((0.5 + 0 + 0 + 1) / 4)


def test_the_dense_term_prefers_the_length_that_was_asked_for():
    batch = graded([10, 30, 10, 30], [1.0] * 4, [10.0, 30.0])
    uninformed = torch.where(batch.mask, 20.0, 0.0)  # the same guess for both
    batch = Graded(**{**vars(batch), "lengths_left": uninformed})
    a = advantage_of("lenvm", BudgetSettings(lam=1.0))(batch)
    assert a[0, 0] > a[1, 0] and a[3, 0] > a[2, 0]
    assert (a[~batch.mask] == 0).all()


def test_the_dense_term_of_right_answers_alone():
    batch = graded([10, 30, 10, 30], [1.0, 0.0, 1.0, 1.0], [10.0, 30.0])
    batch = Graded(**{**vars(batch), "lengths_left": torch.where(batch.mask, 20.0, 0.0)})
    settings = BudgetSettings(lam=1.0)
    everywhere = advantage_of("lenvm", settings)(batch)
    right = advantage_of("lenvm_correct", settings)(batch)
    torch.testing.assert_close(right[[0, 2, 3]], everywhere[[0, 2, 3]])
    answer = task_advantage(batch.correct, batch.prompt_ids)[1] * batch.mask[1]
    torch.testing.assert_close(right[1], answer)
    assert not torch.allclose(right[1], everywhere[1])


def test_figures_are_of_each_budgets_own_completions():
    world = budget_world(SMALL)
    completions = []
    for i, prompt in enumerate(world.held):
        target = int(world.columns[prompt.prompt_id]["target"])
        length = target + 8 if i < 4 else target  # the first problem is 8 tokens too long
        completions.append(Completion([5] * length, "stop" if i else "length", []))
    rows = figures_of(world, completions, SMALL)
    assert [row["budget"] for row in rows] == [30, 60, 120, 180]
    assert rows[0]["deviation"] == pytest.approx(8 / 30 / 3)
    assert rows[3]["bias"] == pytest.approx(8 / 180 / 3)
    assert rows[1]["length"] == pytest.approx(60 + 8 / 3)
    assert rows[0]["share_truncated"] == pytest.approx(1 / 3) and rows[1]["share_truncated"] == 0
    assert rows[0]["accuracy"] == 0


def test_hindsight_asks_for_the_length_that_came_out():
    world = budget_world(SMALL)
    prompt = world.pool[0]
    plain = question(prompt).split(" tokens: ")[1]
    again = asked(replace(prompt, messages=[{"role": "user", "content": plain}]), 41)
    assert question(again) == f"about 41 tokens: {plain}"
    answers = []
    for p in world.pool:
        for k in range(4):
            text = f"the answer is {p.ground_truth}" if k == 1 else "the answer is"
            answers.append(Completion(world.tokenizer(text)["input_ids"] + [1], "stop", []))
    rows = hindsight(world, answers)
    assert len(rows) == len(world.pool), "right answers alone"
    assert all(task.grade(world.tokenizer.decode(c.token_ids[:-1]), "") is False for _, c in rows)


def test_rows_average_seeds_and_budgets():
    def run(seed, near, far):
        cell = {"bias": 0.0, "length": 10.0, "accuracy": 0.5, "share_truncated": 0.0}
        budgets = [
            {"budget": 8, "deviation": near, **cell},
            {"budget": 16, "deviation": far, **cell},
        ]
        return {"method": "lenvm", "seed": seed, "budgets": budgets}

    rows = budget_rows([run(0, 0.1, 0.3), run(1, 0.3, 0.5)])
    assert [row["budget"] for row in rows] == [8, 16, "all"]
    assert [row["deviation"] for row in rows] == pytest.approx([0.2, 0.4, 0.3])
    assert rows[2]["deviation_std"] == pytest.approx(0.1 * 2**0.5)
    assert budget_rows([run(0, 0.1, 0.3)])[0]["deviation_std"] is None


def test_a_whole_bench_goes_on_where_it_was_killed(lenvm, tmp_path, capsys, monkeypatch):
    started, inner = [], bench_budgets.one_run

    def one_run(method, *args):
        started.append(method)
        return inner(method, *args)

    monkeypatch.setattr(bench_budgets, "one_run", one_run)
    arguments = [*TINY.split(), "--lenvm", str(lenvm), "--out", str(tmp_path)]
    assert main(["budgets", *arguments]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert started == ["start", "guided", "l1_exact", "lenvm"]
    assert {(row["method"], row["budget"]) for row in first["rows"]} == {
        (m, b) for m in started for b in (30, 60, 120, 180, "all")
    }
    assert {"budgets.json", "budgets.jsonl", "budgets_rows.csv", "budgets.png"} <= {
        path.name for path in tmp_path.iterdir()
    }
    started.clear()
    next(tmp_path.glob("runs/*/lenvm-0.json")).unlink()
    assert main(["budgets", *arguments]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert started == ["lenvm"], "finished runs are not run again"
    assert again["rows"] == first["rows"], "a run is a function of its arguments"


def test_nonsense_is_refused(lenvm, tmp_path, capsys):
    for arguments, said in (
        (["--lenvm", str(tmp_path / "none")], "is no directory"),
        (["--lenvm", str(lenvm), "--methods", "lenvm,l2"], "--methods l2: use some of"),
    ):
        with pytest.raises(SystemExit):
            main(["budgets", *arguments])
        assert said in " ".join(capsys.readouterr().err.split())  # lines are as wide as the screen


def test_a_warm_up_without_right_answers_says_so(lenvm, tmp_path, capsys):
    arguments = [*TINY.split(), "--lenvm", str(lenvm), "--out", str(tmp_path), "--max-tokens", "2"]
    assert main(["budgets", *arguments]) == 1
    assert "0 right answers, fewer than the 64" in capsys.readouterr().err

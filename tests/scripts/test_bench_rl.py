"""bench/rl.py: the batch layout, the methods' advantages, the comparison, a tiny whole bench."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from lenvm_rl.core import length_term, read_critic
from lenvm_rl.demo import policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.model import (
    LengthValueModel,
    describe_policy,
    load_tokenizer,
    save_checkpoint,
)
from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from reward_fns import LENGTH_REWARDS
from scripts.bench import rl as bench_rl
from scripts.bench.grpo.batches import Grid, length_values, policy_gradient
from scripts.bench.grpo.methods import (
    LENVM,
    Graded,
    Method,
    advantages,
    all_methods,
    rewards_of,
    task_advantage,
)
from scripts.bench.grpo.training import Settings, World
from scripts.bench.harness import main
from scripts.bench.rl import answer, compare, updates_to
from tests.tiny import FORWARD

GAMMA = 0.98
TINY = (
    "--updates 2 --prompts 2 --samples 3 --max-tokens 24 --pool 4 --eval-prompts 2 "
    "--eval-samples 2 --levels 1 --seeds 1 --jobs 0"
)


@pytest.fixture(scope="module")
def lenvm(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = load_tokenizer(policy_path())
    policy = describe_policy(str(policy_path()), tokenizer)
    model = LengthValueModel.from_policy(policy_path(), policy=policy, gamma=GAMMA)
    path = tmp_path_factory.mktemp("lenvm") / "model"
    save_checkpoint(model, tokenizer, path)
    return path


def completions():
    return [Completion([5, 6, 7, 1], "stop", []), Completion([8, 9], "length", [])]


PROMPTS = [[3, 4], [3, 4, 10]]


def graded(**changed) -> Graded:
    """Two prompts, two completions each: 2 and 4 tokens, 4 and 4 tokens."""
    lengths = [2, 4, 4, 4]
    mask = torch.arange(4)[None] < torch.tensor(lengths)[:, None]
    fields = {
        "correct": [1.0, 0.0, 1.0, 1.0],
        "lengths": lengths,
        "prompt_ids": ["a", "a", "b", "b"],
        "mask": mask,
        "finished": torch.ones(4, dtype=torch.bool),
        "values": -0.1 * mask,
        "lengths_left": 5.0 * mask,
        "gamma": GAMMA,
        "answers": "all",
        "columns": {"a": {}, "b": {}},
    }
    return Graded(**{**fields, **changed})


def test_states_and_tokens_lie_where_they_belong():
    grid = Grid.of(PROMPTS, completions())
    assert grid.ids.tolist() == [[3, 4, 5, 6, 7], [3, 4, 10, 8, 0]]
    assert grid.states.tolist() == [[0, 1, 1, 1, 1], [0, 0, 1, 1, 0]]
    assert grid.next_ids[grid.states].tolist() == [5, 6, 7, 1, 8, 9]
    assert grid.finished.tolist() == [True, False]


def test_values_do_not_depend_on_the_batch(lenvm):
    model = LengthValueModel.from_pretrained(lenvm).eval()
    together, lengths = length_values(model, Grid.of(PROMPTS, completions()))
    for i, (prompt, completion) in enumerate(zip(PROMPTS, completions(), strict=True)):
        grid = Grid.of([prompt], [completion])
        alone, _ = length_values(model, grid)
        here = torch.zeros(together.shape[1], dtype=torch.bool)
        here[: grid.states.shape[1]] = grid.states[0]
        torch.testing.assert_close(together[i][here], alone[grid.states], atol=FORWARD, rtol=0)
        assert (together[i][~here] == 0).all() and (lengths[i][here] > 0).all()


def test_the_gradient_is_that_of_the_token_mean():
    policy = ContinuousSampler.from_pretrained(str(policy_path())).model
    grid = Grid.of(PROMPTS, completions())
    a = torch.randn(grid.ids.shape, generator=torch.Generator().manual_seed(0))
    loss = policy_gradient(policy, grid, a)
    taken = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    terms = []
    for i, (prompt, completion) in enumerate(zip(PROMPTS, completions(), strict=True)):
        ids = torch.tensor([[*prompt, *completion.token_ids]])
        log_probs = policy(ids).logits.log_softmax(-1)
        for t, token in enumerate(completion.token_ids):
            column = len(prompt) - 1 + t
            terms.append(-a[i, column] * log_probs[0, column, token])
    expected = sum(terms) / 6
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    for mine, parameter in zip(taken, policy.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-5, rtol=1e-4)


def test_task_advantage_is_verls_grpo():
    core_algos = pytest.importorskip("verl.trainer.ppo.core_algos")
    rewards, prompts = [1.0, 0.0, 0.0, 1.0, 1.0, 0.5], ["a", "b", "a", "b", "a", "b"]
    mask = torch.ones(6, 1)
    theirs, _ = core_algos.compute_grpo_outcome_advantage(
        torch.tensor(rewards)[:, None], mask, index=torch.tensor([0, 1, 0, 1, 0, 1]).numpy()
    )
    torch.testing.assert_close(task_advantage(rewards, prompts), theirs[:, 0], atol=1e-5, rtol=0)
    assert task_advantage([1.0, 1.0], ["a", "a"]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["none", *LENGTH_REWARDS, *LENVM])
def test_every_method_gives_finite_advantages_at_the_tokens_alone(name):
    columns = {p: {"reference_tokens": 4.0, "reference_accuracy": 0.5} for p in "ab"}
    batch = graded(columns=columns)
    for level in (0, 1, 2):
        method = Method(name, level)
        a = advantages(method, batch, method.bind(), lam=0.95)
        assert a.isfinite().all() and (a[~batch.mask] == 0).all()


@pytest.mark.parametrize("name", ["objective", "budget"])
def test_of_two_right_answers_the_shorter_gets_more(name):
    lengths = [30, 60]
    mask = torch.arange(60)[None] < torch.tensor(lengths)[:, None]
    batch = graded(
        correct=[1.0, 1.0],
        lengths=lengths,
        prompt_ids=["a", "a"],
        mask=mask,
        finished=torch.tensor([True, True]),
        values=-0.5 * mask,
        lengths_left=40.0 * mask,
    )
    a = advantages(Method(name, 2), batch, None, lam=1.0)
    assert a[0, 0] > a[1, 0]


def test_length_pressure_on_right_answers_alone():
    batch = graded()
    plain = advantages(Method("none"), batch, None, lam=0.95)
    everywhere = advantages(Method("objective", 2), batch, None, lam=0.95) - plain
    right = advantages(Method("objective_correct", 1), batch, None, lam=0.95) - plain
    rows = torch.tensor(batch.correct) == 1  # both strengths are .3
    torch.testing.assert_close(right[rows], everywhere[rows], atol=1e-6, rtol=0)
    assert (right[~rows] == 0).all() and (everywhere[~rows][batch.mask[~rows]] != 0).all()


@pytest.mark.parametrize("answers", ["all", "correct"])
def test_right_answers_get_the_trainers_own_term(answers):
    """`right` is what lenvm.applies_to=correct makes of the same values, in group or against
    V_c."""
    values = -torch.rand(4, 4, generator=torch.Generator().manual_seed(1)) * graded().mask
    batch = graded(correct=[1.0, 1.0, 1.0, 0.0], values=values, answers=answers)
    settings = PolicyLengthSettings(
        checkpoint="x", scale=1.0, applies_to="correct", normalise="batch_std"
    )
    plain = advantages(Method("none"), batch, None, lam=0.95)
    critic = SimpleNamespace(gamma=GAMMA, target="return", length_scale=None, answers=answers)
    logits, correct = torch.logit(-values), torch.tensor(batch.correct)
    rows = (batch.mask, batch.finished)
    estimate, _ = read_critic(critic, logits, None, *rows, correct, refit=settings.recalibrates)
    term = length_term(
        settings,
        estimate,
        *rows,
        plain,
        gamma=GAMMA,
        scale=1.0,
        correct=correct,
        groups=torch.tensor([0, 0, 1, 1]),
        baseline=settings.baseline_for(answers),
    )
    got = advantages(Method("correct", 1), batch, None, lam=0.5)
    assert Method("correct", 1).strength == 1.0
    torch.testing.assert_close(got, plain + term.scaled, atol=1e-6, rtol=0)
    assert not torch.equal(got, plain)


def test_shaping_changes_nothing_under_grpo():
    plain = advantages(Method("none"), graded(), None, lam=0.95)
    shaped = advantages(Method("shaping", 2), graded(), None, lam=0.95)
    torch.testing.assert_close(shaped, plain, atol=1e-5, rtol=0)


def test_published_rewards_go_through_their_groups():
    method = Method("kimi", 2)
    bound = LENGTH_REWARDS["kimi"].bind(weight=1.0)
    assert method.strength == 1.0
    # prompt a: right and shortest 1 + 1/2, wrong and longest min(0, -1/2); b: equal lengths
    assert rewards_of(graded(), bound) == [1.5, -0.5, 1.0, 1.0]


def test_methods_by_name():
    assert [m.name for m in all_methods(["kimi", "none"], [0, 2])] == ["none", "kimi", "kimi"]
    assert all_methods(["correct_lam0:1", "kimi:2"], [0]) == [
        Method("kimi", 2),
        Method("correct_lam0", 1),
    ]
    default = all_methods(None, [0, 1, 2])
    assert len({m.name for m in default if m.family == "published"}) >= 8
    assert {m.name for m in all_methods(["all"], [1])} == {"none", *LENGTH_REWARDS, *LENVM}
    for name in ("kimmi", "kimi:4"):
        with pytest.raises(ValueError, match=f"unknown method '{name}'"):
            all_methods([name], [0])


def test_lambda_scan_differs_from_objective_right_by_lambda_alone():
    batch = graded()
    for name, lam in (("correct_lam0", 0.0), ("correct_lam1", 1.0)):
        torch.testing.assert_close(
            advantages(Method(name, 1), batch, None, lam=0.95),
            advantages(Method("objective_correct", 1), batch, None, lam=lam),
        )


def test_hard_problems_and_votes_are_of_the_held_out_ones(lenvm, monkeypatch):
    world = World(Settings(lenvm=lenvm, pool=1, eval_prompts=3, eval_samples=2))
    some = [p for p in demo_prompts(200, seed=3) if p.ground_truth not in ("1", "2", "3", "4")]
    hard = [p for p in some if p.data_source == "demo/hard"][:1]
    world.held = [p for p in some if p.data_source == "demo/easy"][:2] + hard
    said = [["1", "1"], ["2", "3"], [hard[0].ground_truth, "4"]]

    def sample(policy, prompts, samples, **_):
        texts = [f"the answer is {n}" for group in said for n in group]
        return [Completion([*world.tokenizer(t)["input_ids"], 1], "stop", []) for t in texts]

    monkeypatch.setattr(world, "sample", sample)
    figures = world.evaluate(None)
    assert figures["hard_accuracy"] == 0.5
    assert figures["hard_length"] == pytest.approx((len(hard[0].ground_truth) + 10) / 2, abs=1)
    votes = world.majority(None, votes=2)
    assert votes["accuracy"] == pytest.approx(1 / 3), "the first of two that are said once"


def history(lengths):
    same = {"reference_length": 100.0, "accuracy": 0.5, "value_rmse": 0.1, "value_bias": 0.0}
    return [{"length": n, **same} for n in lengths]


def outcome(method, family, accuracy, length, lengths, seed=0, strength=1.0):
    return {
        "method": method,
        "family": family,
        "level": 0,
        "strength": strength,
        "seed": seed,
        "accuracy": accuracy,
        "length": length,
        "tokens_per_correct": length / accuracy,
        "share_truncated": 0.0,
        "history": history(lengths),
    }


def test_updates_to_a_length_average_three_updates():
    assert updates_to(history([70, 30, 60, 50, 40]), 0.48) == 4  # (30 + 60 + 50) / 3 = 46.7
    assert updates_to(history([70, 30]), 0.64) is None


def test_beyond_strong_goes_on_in_the_same_proportion():
    assert Method("kimi", 2).strength == 1.0
    assert Method("kimi", 3).strength == pytest.approx(2.0)  # weights .5, 1
    assert Method("truncation", 3).strength == 25  # limits 64, 40 tokens, whole ones
    assert [m.level for m in all_methods(["kimi:3", "none"], [0, 1])] == [0, 3]


def test_short_prompts_are_no_progress():
    steps = [{"length": 50.0, "reference_length": 50.0}] * 3
    assert updates_to(steps, 0.9) is None
    assert updates_to([*steps, {"length": 20.0, "reference_length": 50.0}], 0.8) == 4


def test_the_comparison_says_who_is_dominated_and_how_much_faster_lenvm_is():
    slow, fast = [60] * 6 + [30] * 3, [60] + [30] * 8
    runs = [
        outcome("kimi", "published", 0.8, 40, slow, seed=0),
        outcome("kimi", "published", 0.6, 30, slow, seed=1),
        outcome("objective", "lenvm", 0.705, 30, fast),
    ]
    kimi, ours = compare(runs)
    assert (kimi["accuracy"], kimi["length"], kimi["seeds"]) == (pytest.approx(0.7), 35, 2)
    assert kimi["accuracy_std"] == pytest.approx(0.1 * math.sqrt(2))
    assert (kimi["dominated_by"], ours["dominated_by"]) == (1, 0)
    said = answer([kimi, ours])["objective@1"]
    # 30 % is reached by three updates of 30 tokens: at update 9 and at update 4.
    assert said == {"reaches_alone": True, "speed_up": pytest.approx(9 / 4)}


def test_a_whole_bench_goes_on_where_it_was_killed(lenvm, tmp_path, capsys, monkeypatch):
    names = "none,kimi,o1_pruner,objective_refresh"
    arguments = [*TINY.split(), "--lenvm", str(lenvm), "--out", str(tmp_path), "--methods", names]
    started, inner = [], bench_rl.one_run

    def one_run(method, *args):
        started.append(method.name)
        return inner(method, *args)

    monkeypatch.setattr(bench_rl, "one_run", one_run)
    assert main(["rl", *arguments]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert started == names.split(",")
    assert [row["method"] for row in figures["methods"]] == names.split(",")
    assert all(0 <= row["greedy_accuracy"] <= 1 for row in figures["methods"])
    samplers = figures["before_by_temperature"]
    assert [row["temperature"] for row in samplers] == [1.0, 0.6, 0]
    assert figures["before_by_majority"]["votes"] == 16
    assert figures["before_by_majority"]["length"] > 16 * 5, "one answer costs all votes"
    assert {**samplers[0]} == {"temperature": 1.0, **figures["before"]}
    assert {
        "rl.json",
        "rl.jsonl",
        "rl_methods.csv",
        "pareto.png",
        "curves.png",
        "drift.png",
    } <= {path.name for path in tmp_path.iterdir()}
    started.clear()
    next(tmp_path.glob("runs/*/kimi-0.5-0.json")).unlink()
    assert main(["rl", *arguments]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert started == ["kimi"], "finished runs are not run again"
    for old, new in zip(figures["methods"], again["methods"], strict=True):
        assert old == new, "a run is a function of its arguments"


def test_nonsense_is_refused(lenvm, tmp_path, capsys):
    for arguments, said in (
        (["--lenvm", str(tmp_path / "none")], "is no directory"),
        (["--lenvm", str(lenvm), "--levels", "4"], "use some of 0, 1, 2, 3"),
    ):
        with pytest.raises(SystemExit):
            main(["rl", *arguments])
        assert said in " ".join(capsys.readouterr().err.split())  # lines are as wide as the screen

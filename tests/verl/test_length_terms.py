"""From the critic's raw output to the terms of each token: columns, ends, budgets, metrics."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from lenvm_rl.core import (
    discounted_returns,
    error_sums,
    length_advantage,
    length_to_logit,
    logit_to_length,
    remaining_length,
    shortest_of_group,
)
from lenvm_rl.core.length_terms import (
    LengthValues,
    advantage_metrics,
    advantage_term,
    lambda_of,
    shaping_term,
    weights_of,
)
from lenvm_rl.verl.data_checks import budgets_of
from lenvm_rl.verl.rl.length_step import Report
from lenvm_rl.verl.rl.policy_metrics import LengthAlarm, critic_metrics, length_metrics
from lenvm_rl.verl.rl.policy_settings import PolicyLengthSettings
from lenvm_rl.verl.rl.rollout_batch import RolloutBatch
from lenvm_rl.verl.rl.step_data import QueueData

GAMMA = 0.9
LENGTHS = [3, 1, 5, 4]


def model(target="return", length_scale=None):
    """What is read of a LenVM's configuration."""
    return SimpleNamespace(gamma=GAMMA, target=target, length_scale=length_scale)


def batch(lengths=LENGTHS, finished=(True, True, True, False), correct=(1.0, 0.0, 1.0, 1.0)):
    count = len(lengths)
    return RolloutBatch(
        data=QueueData("train", [f"u{i // 2}_{i % 2}_0" for i in range(count)]),
        widths=torch.tensor(lengths),
        lengths=torch.tensor(lengths),
        prompt_ids=[f"p{i // 2}" for i in range(count)],
        finished=torch.tensor(finished),
        groups=torch.arange(count) // 2,
        scores=torch.tensor(correct),
        correct=torch.tensor(correct),
        reward_info=[{}] * count,
        columns={},
    )


def mask_of(rollouts):
    """[B, T] tokens of the policy, of responses without a tool's."""
    return torch.arange(int(rollouts.lengths.max()))[None] < rollouts.lengths[:, None]


def logged_of(rollouts, estimate):
    """What the trainer logs of a critic that says this."""
    mask = mask_of(rollouts)
    errors = error_sums(mask, estimate.values, estimate.left, gamma=GAMMA)
    errors = torch.where(rollouts.finished[:, None], errors, 0.0)
    ranking = shortest_of_group(estimate.left, mask, rollouts.finished, rollouts.groups)
    return critic_metrics(rollouts, Report(errors, ranking))


def oracle(rollouts, extra=0.0):
    """Logits of the true remaining lengths (plus `extra`), at s_0 .. s_L."""
    left = remaining_length(mask_of(rollouts)) + extra
    left = torch.cat([left, torch.full((len(left), 1), extra)], dim=1)
    return length_to_logit(left.clamp(min=1e-6), gamma=GAMMA)


def ends(logits, lengths):
    """The outputs at s_L."""
    return logits.gather(1, torch.as_tensor(lengths)[:, None])[:, 0]


def estimated(logits, lengths, model):
    return LengthValues.of_logits(logits[:, :-1], ends(logits, lengths), model)


def test_the_end_of_a_row_is_the_state_after_its_last_token():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    got = estimated(logits, [3, 1], model())
    assert_close(got.values, -torch.sigmoid(logits[:, :3]))
    assert_close(got.end_value, -torch.sigmoid(torch.tensor([3.0, 5.0])))
    assert_close(got.end_left, torch.log1p(torch.tensor([3.0, 5.0]).exp()) / -math.log(GAMMA))


@pytest.mark.parametrize("target", ["return", "length", "normalized_length", "log_length"])
def test_every_kind_of_checkpoint_gives_values_and_lengths(target):
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    got = estimated(z, [3, 2], model(target=target, length_scale=20.0))
    assert_close(got.values, torch.expm1(got.left * math.log(GAMMA)), atol=1e-5, rtol=1e-4)


def test_an_oracle_leaves_no_advantage_and_no_error():
    rollouts = batch(finished=(True,) * 4)
    estimate = estimated(oracle(rollouts), LENGTHS, model())
    settings = PolicyLengthSettings(checkpoint="x", scale=1.0)
    term = advantage_term(settings, estimate, mask_of(rollouts), rollouts.finished, gamma=GAMMA)
    assert_close(term, torch.zeros(4, 5), atol=1e-5, rtol=0)
    logged = logged_of(rollouts, estimate)
    assert logged["lenvm/value_rmse"] == pytest.approx(0.0, abs=1e-5)
    assert logged["lenvm/rank_1_of_k"] == 1.0 and logged["lenvm/rank_chance"] == 0.5


def test_a_critic_that_expects_too_much_shows_a_bias():
    rollouts = batch()
    estimate = estimated(oracle(rollouts, extra=3.0), LENGTHS, model())
    logged = logged_of(rollouts, estimate)
    # Over finished rows: mean of gamma**l (1 - gamma**3), l the true remaining lengths.
    left = [3, 2, 1, 1, 5, 4, 3, 2, 1]
    wanted = sum(GAMMA**n for n in left) / len(left) * (1 - GAMMA**3)
    assert logged["lenvm/value_bias"] == pytest.approx(wanted, rel=1e-4)
    assert logged["lenvm/value_rmse"] >= logged["lenvm/value_bias"]


def test_a_cut_row_ends_in_the_critics_own_value():
    rollouts = batch()
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    estimate = estimated(logits, LENGTHS, model())
    settings = PolicyLengthSettings(checkpoint="x", scale=1.0, lam=0.0)
    got = advantage_term(settings, estimate, mask_of(rollouts), rollouts.finished, gamma=GAMMA)
    v = -torch.sigmoid(logits)
    assert got[3, 3].item() == pytest.approx(
        (-(1 - GAMMA) + GAMMA * v[3, 4] - v[3, 3]).item(), abs=1e-6
    )
    assert got[0, 2].item() == pytest.approx((-(1 - GAMMA) - v[0, 2]).item(), abs=1e-6)


def test_batch_std_gives_the_term_a_unit_of_its_own():
    rollouts = batch()
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    estimate = estimated(logits, LENGTHS, model())
    settings = PolicyLengthSettings(checkpoint="x", scale=1.0, normalise="batch_std")
    got = advantage_term(settings, estimate, mask_of(rollouts), rollouts.finished, gamma=GAMMA)
    assert got[mask_of(rollouts) != 0].std(correction=0).item() == pytest.approx(1.0, rel=1e-5)


def right_terms(rollouts, estimate, **given):
    """advantage_term of settings that apply to correct answers."""
    settings = PolicyLengthSettings(checkpoint="x", scale=1.0, applies_to="correct", **given)
    return lambda baseline: advantage_term(
        settings,
        estimate,
        mask_of(rollouts),
        rollouts.finished,
        gamma=GAMMA,
        correct=rollouts.correct,
        groups=rollouts.groups,
        budget=torch.tensor([2.0, 2.0, 6.0, 6.0]),
        baseline=baseline,
    )


def test_wrong_answers_are_left_alone_and_have_no_say_in_the_unit():
    correct = (1.0, 0.0, 0.5, 3.0)  # a score above 1 counts as right, once
    rollouts = batch(correct=correct)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    estimate = estimated(logits, LENGTHS, model())
    got = right_terms(rollouts, estimate, normalise="batch_std", lam=0.7)("correct")
    plain = length_advantage(
        estimate.values,
        mask_of(rollouts),
        rollouts.finished,
        gamma=GAMMA,
        lam=0.7,
        end_value=estimate.end_value,
    )
    mine = (mask_of(rollouts) != 0) & (rollouts.correct > 0)[:, None]
    unit = plain[mine].std(correction=0)
    weight = torch.tensor([1.0, 0.0, 0.5, 1.0])[:, None]
    assert_close(got, plain / unit * weight * mask_of(rollouts))


@pytest.mark.parametrize("use", ["objective", "budget"])
def test_by_group_right_answers_are_judged_among_themselves(use):
    rollouts = batch(finished=(True,) * 4, correct=(0.0, 0.0, 1.0, 1.0))
    estimates = [estimated(torch.randn(4, 6), LENGTHS, model()) for _ in range(2)]
    column = {"budget_column": "budget"} if use == "budget" else {}
    one, two = (right_terms(rollouts, e, use=use, **column)("group") for e in estimates)
    assert torch.equal(one, two), "no critic has a say"
    assert not one[:2].any()
    # Samples 2 and 3 have 5 and 4 tokens: returns -(1 - g**n), or -|n - 6| / 6 against 6 asked for.
    both = [-(1 - GAMMA**n) for n in (5, 4)] if use == "objective" else [-1 / 6, -2 / 6]
    apart = (both[0] - both[1]) / 2
    assert one[2:, 0].tolist() == pytest.approx([apart, -apart], abs=1e-6)
    assert_close(one[2] + one[3], torch.zeros(5))


def test_lambda_follows_the_completions_that_get_the_term():
    rollouts = batch(lengths=[3, 90, 60, 40], correct=(0.0, 0.0, 1.0, 1.0))
    asked = {"checkpoint": "x", "scale": 1.0}

    def lam(**given):
        settings = PolicyLengthSettings(**asked, **given)
        weights = weights_of(settings, rollouts.correct, mask_of(rollouts))
        return lambda_of(settings, rollouts.lengths, weights)

    assert lam() == pytest.approx(1 - 1 / (0.3 * 193 / 4))
    assert lam(applies_to="correct") == pytest.approx(1 - 1 / (0.3 * 50))
    assert lam(lam=0.95) == 0.95
    nothing = batch(correct=(0.0,) * 4)
    settings = PolicyLengthSettings(**asked, applies_to="correct")
    weights = weights_of(settings, nothing.correct, mask_of(nothing))
    assert lambda_of(settings, nothing.lengths, weights) == 1.0


@pytest.mark.parametrize("target", ["return", "length", "log_length"])
def test_any_kind_of_checkpoint_is_refitted(target):
    """What a shift of the logit makes a critic say too much is taken back, at the ends too."""
    rng = torch.Generator().manual_seed(3)
    lengths = torch.randint(5, 30, (64,), generator=rng)
    mask = torch.arange(30)[None] < lengths[:, None]
    left = torch.cat([remaining_length(mask), torch.zeros(64, 1)], 1).clamp(min=0.5)
    said = logit_to_length(length_to_logit(left, gamma=GAMMA) + 1.0, gamma=GAMMA)
    z = {
        "return": length_to_logit(said, gamma=GAMMA),
        "length": torch.log(torch.expm1(said)),
        "log_length": torch.log(torch.expm1(torch.log1p(said))),
    }[target]
    lenvm = model(target=target, length_scale=1.0)
    stale = estimated(z, lengths, lenvm)
    assert_close(stale.left, said[:, :-1], atol=1e-2, rtol=1e-3)
    fresh, fit = LengthValues.refitted(z[:, :-1], ends(z, lengths), lenvm, mask, torch.ones(64) > 0)
    assert (fit.a, fit.b) == (pytest.approx(1.0, abs=1e-2), pytest.approx(-1.0, abs=1e-2))
    assert_close(fresh.left[mask], left[:, :-1][mask], atol=0.1, rtol=0.02)
    assert_close(fresh.values[mask], discounted_returns(mask, gamma=GAMMA)[mask], atol=1e-2, rtol=0)
    assert (fresh.end_left < stale.end_left).all()


def test_the_budget_term_reads_every_rows_own_budget():
    rollouts = batch(finished=(True,) * 4)
    estimate = estimated(oracle(rollouts), LENGTHS, model())
    settings = PolicyLengthSettings(
        checkpoint="x", scale=1.0, use="budget", budget_column="budget", lam=1.0
    )
    budget = torch.tensor([3.0, 2.0, 5.0, 8.0])
    got = advantage_term(
        settings, estimate, mask_of(rollouts), rollouts.finished, gamma=GAMMA, budget=budget
    )
    assert_close(got, torch.zeros(4, 5), atol=1e-4, rtol=0)  # what comes was expected


def test_shaping_of_finished_rows_telescopes():
    rollouts = batch(finished=(True,) * 4)
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    estimate = estimated(logits, LENGTHS, model())
    term = shaping_term(estimate, mask_of(rollouts), rollouts.finished, gamma=1.0, scale=2.0)
    assert_close(term.sum(1), -2.0 * estimate.values[:, 0])


@pytest.mark.parametrize("missing", [None, 0, -3, float("nan"), "many", True])
def test_prompts_without_a_budget_are_counted_and_named(missing):
    with pytest.raises(ValueError, match=r"2 of 4 prompts have no budget \(row 1: "):
        budgets_of([12, missing, 7.5, missing], "budget")
    assert_close(budgets_of([12, 7.5], "budget"), torch.tensor([12.0, 7.5]))


def test_length_metrics_by_hand():
    got = length_metrics(batch())
    assert got["length/mean"] == 3.25 and got["length/p50"] == 3.5 and got["length/max"] == 5.0
    assert got["length/share_truncated"] == 0.25 and got["length/accuracy"] == 0.75
    assert got["length/tokens_per_correct"] == pytest.approx(13 / 3)
    nothing_right = length_metrics(batch(correct=(0.0,) * 4))
    assert "length/tokens_per_correct" not in nothing_right


def test_groups_of_equal_samples_are_not_ranked():
    rollouts = batch(lengths=[3, 3, 4, 4], finished=(True,) * 4)
    estimate = estimated(oracle(rollouts), [3, 3, 4, 4], model())
    logged = logged_of(rollouts, estimate)
    assert "lenvm/rank_1_of_k" not in logged
    got = length_advantage(
        discounted_returns(mask_of(rollouts), gamma=GAMMA),
        mask_of(rollouts),
        rollouts.finished,
        gamma=GAMMA,
        lam=0.95,
    )
    assert_close(got, torch.zeros(4, 4), atol=1e-6, rtol=0)


def test_sizes_of_the_two_terms():
    mask = torch.tensor([[1, 1, 0]])
    got = advantage_metrics(torch.tensor([[3.0, -3.0, 9.0]]), torch.tensor([[1.0, 1.0, 9.0]]), mask)
    assert got["task_advantage_rms"] == pytest.approx(3.0)
    assert got["advantage_share"] == pytest.approx(0.25)
    zero = advantage_metrics(torch.zeros(1, 3), torch.zeros(1, 3), mask)
    assert zero["advantage_share"] == 0.0


def test_the_alarm_warns_once_per_change(caplog):
    alarm = LengthAlarm(0.5, 2.0)
    states = [alarm.check(mean, step) for step, mean in enumerate([100, 90, 40, 30, 100, 250])]
    assert states == [0.0, 0.0, -1.0, -1.0, 0.0, 1.0]
    assert len(caplog.records) == 2
    assert "below 0.5 times the 100.0 of the first" in caplog.text

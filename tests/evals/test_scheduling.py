"""Orders of service: perfect predictions are perfect, random ones are worth nothing."""

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from lenvm_rl.core import LengthBins, gittins, tail_inflated
from lenvm_rl.evals.result import Result
from lenvm_rl.evals.scheduling.draw import draw, view
from lenvm_rl.evals.scheduling.evaluate import (
    Settings,
    evaluate,
    predict_remaining,
    prompt_means,
)
from lenvm_rl.evals.scheduling.orders import orders_of
from lenvm_rl.evals.scheduling.queueing import Server
from lenvm_rl.model import LengthValueModel
from lenvm_rl.model.heldout import NaivePredictors, outcome_errors
from lenvm_rl.model.policy import open_rollouts
from lenvm_rl.rollouts import RolloutReader
from tests.evals.geometric import GAMMA, Oracle, rollouts, write

ROWS = rollouts(range(8), 16, seed=1, prompts_per_kind=3)
SETTINGS = Settings(
    loads=(0.95, 1.2), burstiness=(1.0,), requests=200, seeds=3, server=Server(slots=4)
)


@pytest.fixture(scope="module")
def report():
    lengths = [row.length for row in ROWS]
    naive = NaivePredictors.fit([1] * len(lengths), lengths, gamma=GAMMA)
    predictions = predict_remaining(Oracle(), ROWS, naive)
    # A perfect predictor under another name, and one that has everything upside down.
    predictions["clairvoyant"] = [np.arange(n, 0, -1, dtype=float) for n in lengths]
    predictions["inverse"] = [1000.0 - np.arange(n, 0, -1) for n in lengths]
    return evaluate(ROWS, predictions, SETTINGS)


def line(report, order, load=1.2):
    return next(
        row for row in report.tables["summary"] if row["order"] == order and row["load"] == load
    )


def test_perfect_predictions_are_perfect_knowledge(report):
    for kind in ("predicted", "remaining"):
        for row in report.tables["runs"]:
            if row["order"] == f"{kind}-clairvoyant":
                assert row["share"] == 1.0
        same = line(report, f"{kind}-clairvoyant"), line(report, f"{kind}-true")
        assert same[0]["latency_mean"] == same[1]["latency_mean"]
        assert same[0]["latency_p99"] == same[1]["latency_p99"]


def test_random_predictions_are_worth_nothing(report):
    random = line(report, "predicted-random")
    assert random["share"] == pytest.approx(0.0, abs=0.3)  # 600 requests
    assert line(report, "predicted-inverse")["share"] < -0.5
    assert line(report, "fcfs")["share"] == 0.0


def test_the_true_mean_is_worth_much_and_less_than_the_outcome(report):
    """The oracle knows each prompt's distribution, and no more can be known before the start."""
    for load in SETTINGS.loads:
        oracle = line(report, "predicted-lenvm", load)
        assert 0.3 < oracle["share"] < 1.0
        # The mean of 16 samples is nearly the same knowledge.
        assert line(report, "predicted-prompt", load)["share"] == pytest.approx(
            oracle["share"], abs=0.15
        )
    perfect, fcfs = line(report, "remaining-true"), line(report, "fcfs")
    assert perfect["latency_mean"] < line(report, "predicted-true")["latency_mean"]
    assert perfect["latency_mean"] < fcfs["latency_mean"]
    assert perfect["preemptions"] > 0 == fcfs["preemptions"]


def test_all_orders_of_a_draw_serve_the_same_tokens(report):
    lengths = np.array([row.length for row in ROWS])
    for row in report.tables["runs"]:
        assert 1.0 <= row["busy"] <= 4.0
        assert row["latency_per_token"] >= 1.0
        assert row["latency_mean"] >= row["first_token_mean"]
    assert report.figures["length_mean"] == pytest.approx(lengths.mean())
    assert report.figures["load"] == 0.95
    assert report.figures["share_predicted_lenvm"] == line(report, "predicted-lenvm", 0.95)["share"]


def test_without_preemption_the_remaining_order_is_the_predicted_one():
    settings = Settings(
        loads=(1.1,),
        burstiness=(1.0,),
        requests=100,
        seeds=1,
        preempt_until=0.0,
        server=Server(slots=2),
    )
    report = evaluate(ROWS, predict_remaining(Oracle(), ROWS), settings)
    one, other = (line(report, f"{k}-lenvm", 1.1) for k in ("predicted", "remaining"))
    assert one["latency_mean"] == other["latency_mean"] and other["preemptions"] == 0


def test_an_idle_server_has_no_way_to_go():
    settings = Settings(
        loads=(0.01,), requests=20, seeds=1, server=Server(slots=20), preempt_until=0.0
    )
    report = evaluate(ROWS, predict_remaining(Oracle(), ROWS), settings)
    assert math.isnan(line(report, "predicted-lenvm", 0.01)["share"])
    assert report.to_dict()["share_predicted_lenvm"] is None


def test_a_bound_on_latency_keeps_the_tail(report):
    """At a load above 1 shortest first starves the long ones; patience does not."""
    for load in SETTINGS.loads:
        free, bounded = line(report, "srpt", load), line(report, "patient-true", load)
        assert bounded["tail"] < 1.15 and bounded["latency_max"] < free["latency_max"]
        assert 0 < bounded["share"] < free["share"] == 1.0
    assert line(report, "srpt")["tail"] > 1.5
    ours = report.figures["patient"]["1"]["1.2"]
    assert ours["tail"] == line(report, "patient-lenvm")["tail"]
    assert ours["tail"] < line(report, "remaining-lenvm")["tail"]


def test_orders_without_a_model(report):
    feedback = line(report, "feedback")
    assert feedback["preemptions"] > 0 and math.isfinite(feedback["share"])
    aged = line(report, "aged-lenvm")
    assert aged["tail"] < line(report, "remaining-lenvm")["tail"]


def test_short_memory_and_bursts():
    """All orders of a draw write the same tokens; the less memory, the longer it takes."""
    found = {}
    for memory in (60, None):
        settings = Settings(
            loads=(1.0,),
            burstiness=(0.2, 1.0),
            requests=100,
            seeds=2,
            server=Server(slots=4, memory=memory, prefill_seconds=0.1),
        )
        rows = [row for row in ROWS if row.length <= 50]
        predictions = predict_remaining(Oracle(), rows)
        found[memory] = evaluate(rows, predictions, settings)
        assert {row["burstiness"] for row in found[memory].tables["summary"]} == {0.2, 1.0}
    short, ample = (found[m].tables["summary"][0] for m in (60, None))
    assert short["order"] == ample["order"] == "fcfs"
    assert short["preemptions"] > 0 == ample["preemptions"]
    assert short["read_again"] > 0 == ample["read_again"]
    assert short["throughput"] < ample["throughput"]


def test_keys_of_a_distribution(policy_dir):
    bins = LengthBins.up_to(40)
    model = LengthValueModel.from_policy(
        policy_dir, gamma=GAMMA, target="distribution", bins=bins.edges
    ).eval()
    rows = ROWS[:8]
    known = predict_remaining(model, rows, None)
    with torch.no_grad():
        ids = torch.tensor([rows[3].prompt_ids + rows[3].response_ids[:-1]])
        said = model.distribution(ids)[0, len(rows[3].prompt_ids) - 1 :]
    for name, expected in (
        ("lenvm", said.mean()),
        ("lenvm-p90", said.quantile(0.9)),
        ("lenvm-tie", tail_inflated(said)),
        ("lenvm-gittins", gittins(said)),
    ):
        assert known[name][3] == pytest.approx(expected.double().numpy(), rel=1e-5), name
    orders = {order.name for order in orders_of(known)}
    assert {"predicted-lenvm-tie", "remaining-lenvm-gittins", "patient-lenvm-gittins"} <= orders
    assert "remaining-lenvm-tie" not in orders and "predicted-quantile" not in orders


def test_prompt_means_by_hand():
    rows = [ROWS[0], ROWS[1], ROWS[2], ROWS[-1]]  # three samples of one prompt, one of another
    a, b, c, d = (row.length for row in rows)
    assert prompt_means(rows).tolist() == [*[(a + b + c) / 3] * 3, d]


def test_outcome_errors_by_hand():
    found = outcome_errors(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 2.0, 7.0]))
    assert found["mae"] == pytest.approx(5 / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(17 / 3))
    # Two pairs agree, one is tied in the outcome: 2 / sqrt(3 * 2).
    assert found["kendall_tau"] == pytest.approx(2 / math.sqrt(6))
    assert math.isnan(outcome_errors(torch.ones(3), torch.arange(3.0))["kendall_tau"])
    assert math.isnan(outcome_errors(torch.ones(1), torch.ones(1))["kendall_tau"])


def test_naive_predictors_of_a_file_count_truncated_rows_as_measured_lengths_do(tmp_path):
    rows = rollouts([0, 3], 20)
    rows[0].finish_reason, rows[0].response_ids = "length", [2] * 500
    found = NaivePredictors.of_rollouts(RolloutReader(write(tmp_path / "train", rows)), gamma=GAMMA)

    def fitted(rows):
        return NaivePredictors.fit(
            [len(r.prompt_ids) for r in rows], [r.length for r in rows], gamma=GAMMA
        )

    assert (found.mean_u, found.slope) == (fitted(rows).mean_u, fitted(rows).slope)
    # what is left of a response is compared with those that ended
    assert found.survival.equal(fitted(rows[1:]).survival)


def test_another_policy_and_another_tokenizer_are_refused(tmp_path):
    rows = rollouts([0, 1], 2)
    for row, name in zip(rows, ("org/geometric", "models/Geometric/policy", None, ""), strict=True):
        row.policy["name"] = name  # the folder does not matter, and an unknown name is accepted
    path = write(tmp_path / "same", rows)
    assert len(open_rollouts(Oracle(), path)) == 4
    rows[3].policy["name"] = "harmonic"
    path = write(tmp_path / "other", rows)
    with pytest.raises(ValueError, match="policy 'harmonic'.*lengths of 'geometric'.*--any-policy"):
        open_rollouts(Oracle(), path)
    assert len(open_rollouts(Oracle(), path, any_policy=True)) == 4
    with pytest.raises(ValueError, match="another tokenizer"):
        open_rollouts(Oracle(sha="x"), path, any_policy=True)


def test_settings_that_simulate_nothing_are_refused():
    for wrong, reason in (
        ({"loads": ()}, "simulate nothing"),
        ({"requests": 1}, "simulate nothing"),
        ({"loads": (0.5, -1.0)}, "loads must be positive"),
        ({"preempt_until": -0.1}, "preempt_until"),
        ({"aging": -1.0}, "aging must be at least 0"),
        ({"burstiness": (1.0, 0.0)}, "burstiness must be positive"),
        ({"patience": 0.0}, "patience must be positive"),
    ):
        with pytest.raises(ValueError, match=reason):
            Settings(**wrong)


def test_everything_is_saved_and_shown(report, tmp_path):
    names = {path.name for path in [*report.save(tmp_path), *draw(report, tmp_path)]}
    assert names == {
        "scheduling.json",
        "scheduling.jsonl",
        "scheduling_summary.csv",
        "scheduling_runs.csv",
        "scheduling_predictors.csv",
        "scheduling.png",
    }
    saved = json.loads((tmp_path / "scheduling.json").read_text())
    assert saved["share"]["1.2"]["predicted-true"] == 1.0
    again = Result.load(tmp_path / "scheduling.json")
    assert len(again.tables["runs"]) == len(report.tables["runs"])
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(view(report))
    text = console.export_text()
    assert "predicted-lenvm" in text and "share of the way" in text

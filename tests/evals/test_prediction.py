"""On a policy with known values, does the report show what is true?"""

import io
import json
import math
import warnings

import pytest
import torch

from lenvm_rl.core import length_to_u, u_to_length
from lenvm_rl.evals.prediction.draw import draw, paper_rows, view
from lenvm_rl.evals.prediction.errors import PREDICTORS
from lenvm_rl.evals.prediction.evaluate import evaluate
from lenvm_rl.evals.result import Result
from lenvm_rl.model.heldout import NAIVE
from lenvm_rl.model.probe import Probe
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.atomic import finite
from tests.evals.geometric import (
    EOS,
    GAMMA,
    WORD,
    Oracle,
    end_probability,
    prompt_of,
    rollouts,
    true_u,
    write,
)

KINDS = range(8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Train and held-out rollouts, and continuations of states inside the held-out ones."""
    root = tmp_path_factory.mktemp("geometric")
    heldout = rollouts(KINDS, 64, seed=1, prompts_per_kind=3)
    states = []
    generator = torch.Generator().manual_seed(2)
    for row in heldout[::8]:
        if row.length > 1:
            kind = row.prompt_ids[-1] - 10
            offset = int(torch.randint(1, row.length, (), generator=generator))
            draws = torch.empty(32).geometric_(end_probability(kind), generator=generator)
            states += [
                Rollout(
                    prompt_id=f"{row.prompt_id}#{row.sample_id}@{offset}/{row.length}",
                    sample_id=i,
                    prompt_ids=[*row.prompt_ids, *row.response_ids[:offset]],
                    response_ids=[WORD] * (int(length) - 1) + [EOS],
                    finish_reason="stop",
                )
                for i, length in enumerate(draws.tolist())
            ]
    return {
        "train": write(root / "train", rollouts(KINDS, 40, seed=3, prompts_per_kind=10)),
        "heldout": write(root / "heldout", heldout),
        "states": write(root / "states", states),
    }


@pytest.fixture(scope="module")
def oracle_report(files):
    return evaluate(Oracle(), files["heldout"], train=files["train"], states=files["states"])


def test_true_values_reach_the_noise_floor_and_naive_guesses_do_not(oracle_report):
    figures = oracle_report.figures
    assert figures["prompts"] == 24 and figures["samples_per_prompt"] == 64
    # A perfect predictor's error is the ground truth's own: the floor estimates just that.
    assert figures["mre_s0"] == pytest.approx(figures["mre_noise_floor"], rel=0.35)
    assert figures["mre_s0_corrected"] < 0.6 * figures["mre_noise_floor"]
    assert figures["kendall_tau_s0"] > 0.9
    for naive in ("mean", "linear"):  # prompt length says nothing here
        assert figures[f"mre_naive_{naive}"] > 6 * figures["mre_s0"]
        assert figures[f"mre_naive_{naive}_corrected"] < figures[f"mre_naive_{naive}"]
    assert math.isnan(figures["kendall_tau_naive_mean"])  # a constant ranks nothing


def test_boundary_table_by_hand(oracle_report, files):
    table = {row["prompt_id"]: row for row in oracle_report.tables["prompts"]}
    lengths = [
        row.length for row in rollouts(KINDS, 64, seed=1, prompts_per_kind=3)[:64]
    ]  # kind0-0
    mean = sum(GAMMA**length for length in lengths) / 64
    row = table["kind0-0"]
    assert row["measured"] == pytest.approx(math.log(mean) / math.log(GAMMA), rel=1e-5)
    expected = math.log(1 - true_u(end_probability(0))) / math.log(GAMMA)
    assert row["lenvm"] == pytest.approx(expected, rel=1e-4)
    assert row["prompt_tokens"] == len(prompt_of(0))


def test_monte_carlo_r2_of_true_values_is_one_once_noise_is_taken_out(oracle_report):
    figures = oracle_report.figures
    assert figures["r2_monte_carlo"] == pytest.approx(1.0, abs=0.02)
    assert 0.85 < figures["r2_monte_carlo_raw"] < figures["r2_monte_carlo"]
    assert abs(figures["bias_monte_carlo"]) < 0.01
    for row in oracle_report.tables["state_positions"]:
        assert abs(row["bias"]) < 0.03


def test_a_shifted_model_shows_its_bias_everywhere(files):
    report = evaluate(Oracle(bias=0.05), files["heldout"], states=files["states"])
    assert report.figures["bias_monte_carlo"] == pytest.approx(0.05, abs=0.01)
    assert report.figures["calibration_error"] == pytest.approx(0.05, abs=0.015)
    spread = torch.tensor([true_u(end_probability(k)) for k in KINDS]).var(correction=0)
    expected = 1 - 0.05**2 / spread.item()
    assert report.figures["r2_monte_carlo"] == pytest.approx(expected, abs=0.04)
    assert "mre_naive_mean" not in report.figures  # no training file, no naive predictors


def test_token_statistics_of_true_values(oracle_report):
    figures = oracle_report.figures
    rows = rollouts(KINDS, 64, seed=1, prompts_per_kind=3)
    weights = torch.tensor([float(row.length) for row in rows])
    u = torch.tensor([true_u(end_probability(row.prompt_ids[-1] - 10)) for row in rows])
    mean = ((weights * u).sum() / weights.sum()).item()
    assert figures["u_mean"] == pytest.approx(mean, abs=1e-4)
    assert figures["tokens"] == int(weights.sum())
    outcomes = torch.cat(
        [length_to_u(torch.arange(row.length, 0, -1.0), gamma=GAMMA) for row in rows]
    )
    errors = outcomes - u.repeat_interleave(weights.long())
    assert figures["mse"] == pytest.approx(errors.square().mean().item(), rel=1e-3)
    assert figures["calibration_error"] < 0.05  # tokens of a response are not independent


def test_position_errors_equal_a_plain_loop(oracle_report, files):
    rows = rollouts(KINDS, 64, seed=1, prompts_per_kind=3)
    table = oracle_report.tables["positions"]
    for position in (0.0, 0.5, 0.9):
        errors = []
        for row in rows:
            left = row.length - int((row.length - 1) * position + 1e-9)
            guess = u_to_length(
                torch.tensor(true_u(end_probability(row.prompt_ids[-1] - 10))), gamma=GAMMA
            )
            errors.append(abs(guess.item() - left) / left)
        found = [
            r["relative_error"]
            for r in table
            if r["predictor"] == "lenvm" and r["position"] == position
        ]
        assert found == [pytest.approx(sum(errors) / len(errors), rel=1e-4)]
    assert {row["predictor"] for row in table} == {"lenvm", "mean", "linear", "survival"}


def test_single_samples_give_no_noise_floor_but_the_rest(tmp_path):
    report = evaluate(Oracle(), write(tmp_path / "one", rollouts(KINDS, 1)))
    assert math.isnan(report.figures["mre_noise_floor"])
    assert math.isnan(report.figures["mre_s0_corrected"])
    assert report.to_dict()["mre_noise_floor"] is None
    assert report.figures["mre_s0"] > 0


def test_cut_completions_are_counted_and_warned_about(tmp_path):
    rows = rollouts(KINDS, 8)
    for row in rows[::20]:
        row.finish_reason, row.response_ids = "length", [WORD] * row.length
    with pytest.warns(UserWarning, match="6.2% of the held-out completions were truncated"):
        report = evaluate(Oracle(), write(tmp_path / "truncated", rows))
    assert report.figures["share_truncated"] == pytest.approx(4 / 64)
    assert report.tables["positions"][0]["responses"] == 60


def test_another_tokenizer_and_a_short_context_are_refused(files):
    with pytest.raises(ValueError, match="another tokenizer"):
        evaluate(Oracle(sha="other"), files["heldout"])
    with pytest.raises(ValueError, match=r"kind\d-\d.*exceed the LenVM's context of 20"):
        evaluate(Oracle(context=20), files["heldout"])


def test_states_need_two_continuations(files, tmp_path):
    row = rollouts([0], 1)[0]
    row.prompt_id = "kind0-0#0@1/5"
    with pytest.raises(ValueError, match="1 continuation.*at least two"):
        evaluate(Oracle(), files["heldout"], states=write(tmp_path / "s", [row]))
    row.prompt_id = "kind0-0"
    other = rollouts([0], 2)
    with pytest.raises(ValueError, match="'kind0-0' names no state"):
        evaluate(Oracle(), files["heldout"], states=write(tmp_path / "t", other))


def test_everything_is_saved_and_reads_back(oracle_report, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a figure whose text does not fit
        paths = [*oracle_report.save(tmp_path), *draw(oracle_report, tmp_path)]
    names = {path.name for path in paths}
    tables = {"prompts", "positions", "calibration", "states", "state_positions"}
    tables |= {"domains", "position_calibration"}
    assert names == {
        "prediction.json",
        "prediction.jsonl",
        "prediction_outcomes.csv",
        "prediction_position_domains.csv",
        *(f"prediction_{table}.{kind}" for table in tables for kind in ("csv", "png")),
    }
    assert all((tmp_path / name).stat().st_size > 100 for name in names)
    saved = json.loads((tmp_path / "prediction.json").read_text())
    assert saved["r2_monte_carlo"] == oracle_report.figures["r2_monte_carlo"]
    assert Result.load(tmp_path / "prediction.json").tables == finite(oracle_report.tables)


def test_the_screen_view_names_every_predictor(oracle_report):
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(view(oracle_report))
    text = console.export_text()
    words = ("LenVM", "training mean", "linear in prompt length", "noise floor", "R2")
    for word in (*words, "paper, LenVM 32B", "single outcomes"):
        assert word in text


def test_domains_by_hand(files, tmp_path):
    """Figures of a domain are those of a file that holds the domain alone."""
    rows = rollouts(KINDS, 64, seed=1, prompts_per_kind=3)
    for row in rows:
        row.data_source = "short" if row.prompt_ids[-1] < 14 else "long"
    whole = evaluate(Oracle(), write(tmp_path / "all", rows), train=files["train"])
    found = {(r["domain"], r["predictor"]): r for r in whole.tables["domains"]}
    assert set(found) == {(d, p) for d in ("short", "long") for p in ("lenvm", "mean", "linear")}
    for domain in ("short", "long"):
        part = [row for row in rows if row.data_source == domain]
        alone = evaluate(Oracle(), write(tmp_path / domain, part), train=files["train"]).figures
        row = found[domain, "lenvm"]
        assert row["prompts"] == 12 and row["samples_per_prompt"] == 64
        assert row["mre"] == pytest.approx(alone["mre_s0"])
        assert row["noise_floor"] == pytest.approx(alone["mre_noise_floor"])
        assert row["mae"] == pytest.approx(alone["mae_s0"])
        assert row["kendall_tau"] == pytest.approx(alone["kendall_tau_s0"])
        assert found[domain, "mean"]["mre"] == pytest.approx(alone["mre_naive_mean"])


def in_two_sources(rows):
    """Kinds 0 to 3 are short, the others long."""
    for row in rows:
        row.data_source = "short" if row.prompt_ids[-1] < 14 else "long"
    return rows


@pytest.fixture(scope="module")
def by_source(tmp_path_factory):
    """Held-out prompts of two sources, baselines fitted on the same two, and a poor probe."""
    root = tmp_path_factory.mktemp("sources")
    heldout = in_two_sources(rollouts(KINDS, 16, seed=1, prompts_per_kind=3))
    train = in_two_sources(rollouts(KINDS, 40, seed=3, prompts_per_kind=10))
    return evaluate(
        Oracle(),
        write(root / "heldout", heldout),
        train=write(root / "train", train),
        probe=Probe(Oracle(bias=0.2), {"probe_states": 7}),
        inside=4,
    )


def test_the_mean_of_its_source_and_a_probe_stand_beside_the_others(by_source):
    figures = by_source.figures
    assert figures["best_naive"] == "source" and figures["probe_states"] == 7
    assert figures["mre_s0"] < figures["mre_naive_source"] < figures["mre_naive_mean"]
    assert figures["mre_s0"] < figures["mre_probe"]
    known = {row["predictor"] for row in by_source.tables["positions"]}
    assert known == {"lenvm", "probe", *NAIVE}
    assert {row["predictor"] for row in by_source.tables["domains"]} == set(PREDICTORS)
    outcomes = {(row["at"], row["predictor"]) for row in by_source.tables["outcomes"]}
    assert {("s0", "probe"), ("all", "probe"), ("s0", "source"), ("all", "source")} <= outcomes


def test_the_share_of_the_best_naive_error_is_of_the_corrected_ones(by_source):
    figures = by_source.figures
    ours, theirs = figures["mre_s0_corrected"], figures["mre_naive_source_corrected"]
    assert figures["share_of_best_naive"] == pytest.approx(ours / theirs)
    low, high = (figures[f"share_of_best_naive_{end}"] for end in ("low", "high"))
    assert low <= figures["share_of_best_naive"] <= high < 1


def test_intervals_hold_the_means(by_source, oracle_report):
    for key in ("s0", "probe", "naive_mean", "naive_linear", "naive_source"):
        for end in ("", "_corrected"):
            value = by_source.figures[f"mre_{key}{end}"]
            low, high = (by_source.figures[f"mre_{key}{end}_{side}"] for side in ("low", "high"))
            assert low <= value <= high and low < high
    for row in [*by_source.tables["positions"], *by_source.tables["position_domains"]]:
        assert row["low"] < row["relative_error"] < row["high"]
    wide = by_source.figures["mre_s0_high"] - by_source.figures["mre_s0_low"]
    narrow = oracle_report.figures["mre_s0_high"] - oracle_report.figures["mre_s0_low"]
    assert narrow < wide  # 64 samples a prompt against 16


def test_one_prompt_has_no_interval(tmp_path):
    report = evaluate(Oracle(), write(tmp_path / "one", rollouts([0], 8)))
    assert math.isnan(report.figures["mre_s0_low"])
    assert all(math.isnan(row["high"]) for row in report.tables["positions"])


def test_positions_by_source_are_those_of_the_source_alone(by_source, tmp_path):
    rows = in_two_sources(rollouts(KINDS, 16, seed=1, prompts_per_kind=3))
    part = write(tmp_path / "long", [row for row in rows if row.data_source == "long"])
    alone = {r["position"]: r for r in evaluate(Oracle(), part, inside=4).tables["positions"]}
    table = by_source.tables["position_domains"]
    found = [r for r in table if (r["domain"], r["predictor"]) == ("long", "lenvm")]
    assert len(found) == 5 and len(table) == 2 * 5 * (2 + len(NAIVE))
    for row in found:
        assert {key: row[key] for key in alone[row["position"]]} == alone[row["position"]]


def test_the_first_completions_are_read_and_all_of_them_measured(by_source):
    assert by_source.figures["samples_per_prompt"] == 16
    assert by_source.tables["positions"][0]["responses"] == 24 * 4


def test_outcomes_equal_a_plain_loop(oracle_report):
    rows = rollouts(KINDS, 64, seed=1, prompts_per_kind=3)
    at_start, everywhere = [], []
    for row in rows:
        u = torch.tensor(true_u(end_probability(row.prompt_ids[-1] - 10)))
        guess = u_to_length(u, gamma=GAMMA).item()  # the same at every state
        at_start.append(abs(guess - row.length))
        everywhere += [abs(guess - left) for left in range(row.length, 0, -1)]
    found = {(r["at"], r["predictor"]): r for r in oracle_report.tables["outcomes"]}
    mean = {"s0": sum(at_start) / len(at_start), "all": sum(everywhere) / len(everywhere)}
    for at, expected in mean.items():
        assert found[at, "lenvm"]["mae"] == pytest.approx(expected, rel=1e-4)
    assert oracle_report.figures["mae_outcomes_s0_lenvm"] == found["s0", "lenvm"]["mae"]
    # The truth about the prompt ranks single outcomes, though it cannot rank them all.
    assert 0.4 < found["s0", "lenvm"]["kendall_tau"] < 0.9
    assert set(found) >= {("all", "survival"), ("s0", "mean")}


def test_calibration_by_position(oracle_report):
    table = oracle_report.tables["position_calibration"]
    assert {row["position"] for row in table} == {0.0, 0.25, 0.5, 0.75}
    for position in (0.0, 0.75):
        rows = [row for row in table if row["position"] == position]
        assert len(rows) == 10 and sum(row["responses"] for row in rows) == 8 * 3 * 64
    # At s_0 true values are calibrated; at 75 % what is left is less than could have been.
    start = [row for row in table if row["position"] == 0.0]
    assert all(abs(row["actual"] - row["predicted"]) < 0.06 for row in start)
    late = [row for row in table if row["position"] == 0.75]
    assert all(row["actual"] < row["predicted"] for row in late)


def test_another_policy_is_refused_before_anything_is_measured(files, tmp_path):
    rows = rollouts([0], 2)
    rows[1].policy["name"] = "harmonic"
    path = write(tmp_path / "other", rows)
    with pytest.raises(ValueError, match="completions of policy 'harmonic'"):
        evaluate(Oracle(), path)
    with pytest.raises(ValueError, match="completions of policy 'harmonic'"):
        evaluate(Oracle(), files["heldout"], train=path)
    assert evaluate(Oracle(), path, any_policy=True).figures["completions"] == 2


def test_paper_rows_are_table_3():
    rows = {(row["predictor"], row["domain"]): row["mre"] for row in paper_rows()}
    assert rows["LenVM 1.5B", "math"] == 0.17 and rows["LenVM 32B", "instructions"] == 0.171
    assert len(rows) == 15

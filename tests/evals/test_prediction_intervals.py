"""Intervals of a distribution that is known: they hold what they say, and a bolder one less."""

import pytest
import torch

from lenvm_rl.core import LengthBins
from lenvm_rl.evals.prediction.draw import draw, view
from lenvm_rl.evals.prediction.evaluate import evaluate
from lenvm_rl.evals.prediction.intervals import Outcomes
from lenvm_rl.evals.prediction.states import StateId
from tests.evals.geometric import GAMMA, Oracle, end_probability, rollouts, write

BINS = LengthBins.up_to(400)


class WideOracle(Oracle):
    """The true distribution at every state; `sharpness` multiplies its log probabilities."""

    def __init__(self, *, sharpness=1.0):
        super().__init__()
        self.sharpness = sharpness
        self.config.length_bins = BINS
        self.config.require_bins = lambda: BINS

    def length_outputs(self, input_ids):
        kind = (input_ids - 10).clamp(min=0).cummax(dim=1).values
        p = end_probability(kind.double())[..., None]
        edges = torch.tensor(BINS.edges, dtype=torch.float64)
        longer = (1 - p) ** (edges - 1)
        longer[..., -1] = 0.0
        return (longer[..., :-1] - longer[..., 1:]).clamp(min=1e-30).log() * self.sharpness

    def length_logits(self, input_ids):
        return BINS.of(self.length_outputs(input_ids)).logit(GAMMA).float()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    root = tmp_path_factory.mktemp("intervals")
    rows = rollouts(range(6), 60, prompts_per_kind=2)
    for row in rows:
        row.data_source = "even" if int(row.prompt_id[4]) % 2 else "odd"
    states = rollouts(range(6), 200, seed=5)
    for row in states:
        kind = int(row.prompt_id[4])
        row.prompt_id = str(StateId(row.prompt_id, 0, 1 + 2 * (kind % 4), 8))
    return write(root / "rows", rows), write(root / "states", states)


@pytest.fixture(scope="module")
def report(files):
    return evaluate(WideOracle(), files[0], states=files[1])


def groups(result):
    return {(row["group"], row["name"]): row for row in result.tables["coverage"]}


def test_the_true_distribution_covers_what_it_says(report):
    found = groups(report)
    known = [key for key in found if key[0] != "position"] + [("position", "0 %")]
    assert {"all", "source", "written", "continuations"} == {key[0] for key in known[:-1]}
    for key in known:
        row = found[key]
        tolerance = 0.03 + 1.5 / row["states"] ** 0.5
        assert row["coverage_90"] == pytest.approx(0.9, abs=tolerance), key
        assert row["coverage_50"] == pytest.approx(0.5, abs=tolerance), key
    assert report.figures["coverage_90"] == found["all", "all states"]["coverage_90"]
    assert report.figures["coverage_error"] < 0.04
    pit = [row["share"] for row in report.tables["pit"] if row["name"] == "all states"]
    assert sum(pit) == pytest.approx(1.0) and max(pit) < 0.07 and min(pit) > 0.03


def test_a_position_known_only_afterwards_is_no_fair_group(report):
    """Near the end of a response that may always go on, little is left: outside the middle."""
    assert groups(report)["position", "90 %"]["coverage_50"] < 0.35


def test_a_bolder_distribution_covers_less_and_scores_worse(files, report):
    bold = evaluate(WideOracle(sharpness=3.0), files[0])
    assert bold.figures["coverage_90"] < 0.8
    for score in ("crps", "pinball_90", "nll"):
        assert bold.figures[score] > report.figures[score]
    assert not any(row["group"] == "continuations" for row in bold.tables["coverage"])


def test_scores_are_means_over_states(report, files):
    one = {name: torch.tensor([1.0, 3.0]) for name in ("crps", "pinball_50", "pinball_90", "nll")}
    steps = {"low": torch.tensor([0.0, 0.9]), "high": torch.tensor([0.1, 1.0])}
    row = Outcomes([one | {k: x.double() for k, x in steps.items()}]).row("a", "b")
    assert (row["crps"], row["coverage_50"]) == (2.0, 0.0)
    assert row["coverage_90"] == pytest.approx(0.5)  # half of either step
    assert report.figures["nll"] == groups(report)["all", "all states"]["nll"]


def test_pictures_and_screen(report, tmp_path):
    from rich.console import Console

    names = {path.name for path in draw(report, tmp_path)}
    for table in ("coverage", "reliability", "pit"):
        assert f"prediction_{table}.png" in names
    with (console := Console(width=100)).capture() as screen:
        console.print(view(report))
    assert "Inside the intervals" in screen.get()


def test_one_gamma_has_no_such_tables(files):
    result = evaluate(Oracle(), files[0])
    assert not {"coverage", "reliability", "pit"} & set(result.tables)

"""The runs of both grids, what is made of their results, and what their figures show."""

import json

import pytest

from lenvm_rl.core import length_to_u
from lenvm_rl.evals.result import Result
from recipes.paper_grids.ablation import AblationSettings, ablation_grid, ablation_report
from recipes.paper_grids.cell import Cell
from recipes.paper_grids.draw import draw, figure_of, plot_choices, plot_gamma, plot_scaling
from recipes.paper_grids.grid import METRICS
from recipes.paper_grids.scaling import ScalingSettings, scaling_grid, scaling_report
from tests.recipes.paper_grids.test_grid import data  # noqa: F401  (a fixture)

BASE = {"steps": 8, "batch_rows": 4, "learning_rate": 1e-3, "evaluations": 2}
SCALING = ScalingSettings(trunks=("1x16", "1x32"), trunk="1x16", prompts=(2, 4), samples=(1, 2))
ABLATION = AblationSettings(trunk="1x16", prompts=4, samples=2)


def result(cell: Cell, final: float, **metrics):
    """What a run would have left, with the loss twice its final one half way."""

    def point(step, mse):
        return {"step": step, **dict.fromkeys(METRICS, 0.25), "mse_constant": 1.0, "mse": mse} | {
            name: value * mse / final for name, value in metrics.items()
        }

    curve = [point(4, 2 * final), point(8, final)]
    return {
        "fingerprint": "f",
        "cell": vars(cell),
        "parameters": 1000 if cell.trunk == "1x16" else 4000,
        "epochs": 1.0,
        "seconds": 2.0,
        "curve": curve,
        "final": curve[-1],
        "least_mse": final,
    }


def fill(variants, loss, **metrics):
    return {v.cell: result(v.cell, loss(v.cell), **metrics) for v in variants}


@pytest.fixture
def scaled(data):  # noqa: F811
    variants = scaling_grid(data, SCALING, BASE)
    loss = lambda c: (1.0 if c.trunk == "1x32" else 2.0) + 8 / (c.prompts * c.samples) + c.seed  # noqa: E731
    return scaling_report(variants, fill(variants, loss), {"data": "d"})


@pytest.fixture
def ablated(data):  # noqa: F811
    variants = ablation_grid(data, ABLATION, BASE)
    loss = lambda c: 4.0 if c.grouped else 2.0  # noqa: E731
    return ablation_report(variants, fill(variants, loss, u_bias_s0=-0.1), {})


def test_the_scaling_grid_varies_one_thing_at_a_time(data):  # noqa: F811
    variants = scaling_grid(data, SCALING, BASE)
    sizes = [(v.group, v.label, v.cell.trunk, v.cell.prompts, v.cell.samples) for v in variants]
    assert (
        sizes[::2]
        == sizes[1::2]
        == [  # two seeds of each
            ("trunk", "1x16", "1x16", 4, 2),
            ("trunk", "1x32", "1x32", 4, 2),
            ("prompts", "2", "1x16", 2, 2),
            ("prompts", "4", "1x16", 4, 2),
            ("samples", "1", "1x16", 4, 1),
            ("samples", "2", "1x16", 4, 2),
        ]
    )
    assert [v.cell.seed for v in variants] == [0, 1] * 6
    assert len({v.cell for v in variants}) == 2 * 4  # the middle is shared
    assert {v.cell.gamma for v in variants} == {data.gamma}


def test_the_ablation_has_the_method_in_every_part(data):  # noqa: F811
    variants = ablation_grid(data, ABLATION, BASE)
    middle = {c for v in variants if v.label == "discounted return" for c in [v.cell]}
    for part, method in (
        ("batches", "shuffled"),
        ("precision", "float32"),
        ("weighting", "token_mean"),
    ):
        assert {v.cell for v in variants if (v.group, v.label) == (part, method)} == middle
    scales = {v.cell.target: v.cell.length_scale for v in variants if v.group == "target"}
    assert scales["length"] == 1.0 and scales["normalized_length"] == data.longest_response
    gammas = [v.cell.gamma for v in variants if v.group == "gamma"][::2]
    lengths = [factor * data.p99 for factor in (0.3, 0.6, 3.0)]
    assert [
        float(length_to_u(length, gamma=gamma))
        for length, gamma in zip(lengths, gammas, strict=True)
    ] == pytest.approx([0.99] * 3)
    assert len({v.cell for v in variants}) == 2 * (1 + 3 + 1 + 2 + 3 + 2)
    some = ablation_grid(data, AblationSettings(parts=("gamma",), gammas=(0.5,), seeds=1), BASE)
    assert [(v.group, v.label, v.cell.gamma) for v in some] == [("gamma", "0.5000", 0.5)]


def test_finals_are_means_over_seeds_and_claims_compare_them(scaled):
    finals = {(row["group"], row["label"]): row for row in scaled.tables["finals"]}
    assert finals["trunk", "1x32"]["mse"] == pytest.approx(1 + 1 + 0.5)
    assert finals["trunk", "1x32"]["mse_std"] == pytest.approx(0.5**0.5)  # of 2 and 3
    assert finals["samples", "1"]["mse"] == pytest.approx(2 + 2 + 0.5)
    claims = scaled.figures["claims"]
    for group in ("trunk", "prompts", "samples"):
        assert claims[f"{group}_largest_beats_smallest"] and claims[f"{group}_monotone"]
    assert claims["samples_loss_ratio"] == pytest.approx(3.5 / 4.5)
    assert not claims["prompts_smallest_overfits"]
    assert scaled.figures["runs"] == 8 and scaled.figures["run_seconds"] == 16.0


def test_curves_have_the_mean_and_the_band(scaled):
    rows = [r for r in scaled.tables["curves"] if (r["group"], r["label"]) == ("trunk", "1x32")]
    assert [r["step"] for r in rows] == [4, 8]
    assert [rows[0][k] for k in ("mse", "mse_low", "mse_high")] == pytest.approx([5.0, 4.0, 6.0])


def test_claims_of_the_ablation(ablated):
    claims = ablated.figures["claims"]
    assert claims["shuffled_beats_grouped"] and claims["grouped_over_shuffled"] == 2.0
    assert claims["precision_spread"] == 0.0
    assert claims["weighting_bias_s0"]["trajectory_mean"] == pytest.approx(-0.1)
    assert set(claims) >= {"target_least_length_error", "gamma_best_at_00", "weighting_least_mse"}


@pytest.mark.parametrize("name", ["scaled", "ablated"])
def test_what_is_written_can_be_read_back_and_drawn_again(name, request, tmp_path):
    report = request.getfixturevalue(name)
    paths = {path.name: path for path in [*report.save(tmp_path), *draw(report, tmp_path)]}
    figures = {
        "scaling": {"scaling.png"},
        "ablation": {"ablation_choices.png", "ablation_gamma.png"},
    }[report.name]
    assert figures <= set(paths)
    assert all(paths[f].read_bytes().startswith(b"\x89PNG") for f in figures)
    written = json.loads(paths[f"{report.name}.json"].read_text())
    assert written.pop("headline") and written == json.loads(json.dumps(report.to_dict()))
    tables = Result.load(paths[f"{report.name}.json"]).tables
    assert [row["label"] for row in tables["finals"]] == [
        row["label"] for row in report.tables["finals"]
    ]
    assert f"{report.name}_curves.csv" in paths and f"{report.name}_paper.csv" in paths


def lines_of(axes):
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in axes.lines
        if not line.get_label().startswith("_")
    }


def test_the_scaling_figure_shows_the_curves_and_sizes_as_shares(scaled):
    axes = figure_of(plot_scaling, scaled.tables).axes
    assert lines_of(axes[0])["1x32"] == ([4, 8], pytest.approx([5.0, 2.5]))
    below = axes[3].containers[0].lines[0]  # final loss against size of the trunk
    assert list(below.get_xdata()) == [0.25, 1.0]
    assert list(below.get_ydata()) == pytest.approx([3.5 / 2.5, 1.0])
    paper = lines_of(axes[4])["paper, largest 100000"]
    assert paper[0] == pytest.approx([0.1, 0.3, 1.0])
    assert paper[1] == pytest.approx([0.00821 / 0.00553, 0.00620 / 0.00553, 1.0])


def test_the_ablation_figures_show_what_the_paper_shows(ablated):
    choices = figure_of(plot_choices, ablated.tables).axes
    assert [axes.get_title()[:4] for axes in choices] == ["(5a)", "(5b)", "(5c)", "(E) "]
    assert lines_of(choices[1])["grouped"] == ([4, 8], [8.0, 4.0])
    assert lines_of(choices[3])["trajectory_mean"][1] == pytest.approx([-0.2, -0.1])
    gamma = figure_of(plot_gamma, ablated.tables).axes
    assert len(gamma) == 4 and all(len(lines_of(axes)) == 3 for axes in gamma)


def test_parts_that_were_not_run_have_no_panel(data):  # noqa: F811
    variants = ablation_grid(data, AblationSettings(parts=("batches",), seeds=1), BASE)
    report = ablation_report(variants, fill(variants, lambda c: 1.0), {})
    assert len(figure_of(plot_choices, report.tables).axes) == 1
    assert figure_of(plot_gamma, report.tables) is None
    assert set(report.figures["claims"]) == {"shuffled_beats_grouped", "grouped_over_shuffled"}


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ScalingSettings(seeds=0), "seeds must be at least 1"),
        (lambda: ScalingSettings(prompts=(4, 4)), "prompts must be different sizes"),
        (lambda: ScalingSettings(trunks=()), "trunks must be different sizes"),
        (lambda: AblationSettings(parts=("targets",)), "parts must be of target, batches"),
        (lambda: AblationSettings(seeds=0), "seeds must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()

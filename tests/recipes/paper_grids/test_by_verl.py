"""Runs of a grid for verl: do their commands compose, and what comes of what verl leaves behind?"""

import dataclasses
import json
import shlex

import pytest
import torch

from lenvm_rl.model import LengthValueModel, load_tokenizer, save_checkpoint
from lenvm_rl.model.heldout import heldout_errors
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.verl.pretrain import settings
from lenvm_rl.verl.pretrain.settings import check_verl_settings, read_settings
from recipes.paper_grids.ablation import AblationSettings, ablation_grid
from recipes.paper_grids.by_verl import VerlLauncher, overrides, read_curve, write_commands
from recipes.paper_grids.cell import build, fingerprint
from recipes.paper_grids.grid import run_grid
from scripts.bench.pool import RunsFailed
from tests.recipes.paper_grids.test_grid import CELL, data  # noqa: F401  (a fixture)
from tests.recipes.test_pretrain import composed

LOG = """(TaskRunner pid=7) step:2 - val/mse:0.5 - val/mae:0.1 - val/relative_error/00:0.25 - a:1
(TaskRunner pid=7) step:3 - critic/mse:0.1
step:4 - val/mse:0.25 - val/relative_error/75:np.float64(1.5)
step:4 - val/mse:2e-1 - val/relative_error/75:1.25
"""


@pytest.mark.parametrize("recipe", ["qwen2.5-7b-from-1.5b", "qwen3-30b-a3b-from-1.7b", "demo"])
def test_every_run_composes_and_passes_every_check(recipe, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(settings, "wants_cpu", lambda: recipe == "demo")
    parts = AblationSettings(
        trunk="1x16", prompts=4, samples=2, parts=("target", "batches", "precision", "gamma")
    )
    base = {"steps": 8, "batch_rows": 4, "learning_rate": 1e-3, "evaluations": 2}
    for variant in ablation_grid(data, parts, base):
        config = composed(recipe, *overrides(variant.cell, data, tmp_path, extra=["data.seed=3"]))
        block, cell = read_settings(config), variant.cell
        check_verl_settings(config)
        assert (block.target, block.grouped, block.seed) == (cell.target, cell.grouped, cell.seed)
        assert block.gamma == pytest.approx(cell.gamma) and block.boundary_weight == 1.0
        assert config.data.train_batch_size == config.critic.ppo_mini_batch_size == 4
        assert config.trainer.total_training_steps == 8 and config.trainer.test_freq == 4
        assert config.trainer.total_epochs * 4 * 2 >= 8 * 4  # rows are enough for the steps
        precision = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        assert precision[config.critic.fsdp.mixed_precision.param_dtype] == cell.precision
        assert len(RolloutReader(block.train_rollouts)) == 8 and config.data.seed == 3


def test_a_weighting_that_the_trainer_does_not_have_is_refused(data, tmp_path):  # noqa: F811
    cell = dataclasses.replace(CELL, weighting="trajectory_mean")
    with pytest.raises(ValueError, match="leave the part weighting out"):
        overrides(cell, data, tmp_path)


def test_commands_are_one_line_per_run_and_their_models_are_there(data, tmp_path):  # noqa: F811
    other = dataclasses.replace(CELL, target="log_length")
    file, count = write_commands([CELL, CELL, other], data, tmp_path, recipe="demo")
    lines = [shlex.split(line) for line in file.read_text().splitlines()[2:]]
    assert count == len(lines) == 2
    for line, cell in zip(lines, (CELL, other), strict=True):
        assert line[:2] == ["recipes/pretrain/run.sh", "demo"]
        assert line[2:] == overrides(cell, data, tmp_path)
        start = line[2].removeprefix("critic.model.path=")
        model = LengthValueModel.from_pretrained(start)
        assert model.config.gamma is None and model.config.target == "return"
        expected = build(cell, data.tokenizer, max_positions=data.longest_sequence)
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.parameters(), expected.parameters(), strict=True)
        )


def test_the_curve_is_read_from_the_log(tmp_path):
    (tmp_path / "log").write_text(LOG)
    assert read_curve(tmp_path / "log", target="return") == [
        {"step": 2, "mse": 0.5, "relative_error_00": 0.25},
        {"step": 4, "mse": 0.2, "relative_error_75": 1.25},
    ]
    lengths = read_curve(tmp_path / "log", target="length")
    assert [point.get("mse") for point in lengths] == [None, None]


def test_the_launcher_trains_judges_and_does_not_train_twice(data, tmp_path):  # noqa: F811
    calls = []

    def trainer(lines, log, steps):
        calls.append((lines, steps))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(LOG if len(calls) > 1 else LOG.splitlines()[0] + "\n")
        if len(calls) == 1:
            raise RunsFailed("killed")
        model = build(CELL, data.tokenizer, max_positions=data.longest_sequence)
        folder = log.parent / "checkpoint" / f"global_step_{steps}" / "lenvm"
        folder.parent.mkdir(parents=True)
        save_checkpoint(model, load_tokenizer(data.tokenizer), folder)

    launcher = VerlLauncher(out=tmp_path, train=trainer, extra=["data.seed=3"])
    with pytest.raises(RunsFailed, match="killed"):
        run_grid([CELL], data, tmp_path, jobs=0, launcher=launcher)
    (result,) = run_grid([CELL], data, tmp_path, jobs=0, launcher=launcher).values()
    assert len(calls) == 2 and calls[0] == calls[1]
    assert calls[0] == (overrides(CELL, data, tmp_path, extra=["data.seed=3"]), CELL.steps)
    assert [point["step"] for point in result["curve"]] == [2, 4]
    model = build(CELL, data.tokenizer, max_positions=data.longest_sequence)
    rows = [row for row in RolloutReader(data.heldout).iter_rows() if row.sample_id < 2]
    assert result["final"]["mse"] == pytest.approx(heldout_errors(model, rows)["mse"], rel=1e-4)
    assert result["least_mse"] == min(0.5, result["final"]["mse"])
    name = fingerprint(CELL, data.fingerprint)
    (tmp_path / "cells" / f"{name}.json").unlink()
    again = run_grid([CELL], data, tmp_path, jobs=0, launcher=launcher)
    assert len(calls) == 2 and json.loads(json.dumps(again[CELL])) == result

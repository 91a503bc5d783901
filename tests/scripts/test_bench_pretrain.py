"""The training-speed benchmark, in tiny: its data, its three trainers, its arithmetic, a run."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lenvm_rl.rollouts import RolloutWriter
from scripts.bench import pretrain as bench_pretrain
from scripts.bench.hardware import Shape, product_rate
from scripts.bench.harness import main
from scripts.bench.presets import (
    PRESETS,
    drawn_lengths,
    file_lengths,
    make_rows,
    training_flops,
    trunk_parameters,
)
from scripts.bench.pretrain import summarize

TINY = replace(
    PRESETS["cpu-25m"],
    shape=Shape(32, 2, 4, 2, 48, 64),
    response_mean=14,
    response_std=9,
    prompt_mean=5,
    prompt_std=2,
    row_tokens=60,
    micro_tokens=60,
    rows=10,
    padded_rows=4,
    matmul_size=64,
)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """The three trainers around the same weights, and one step's completions."""
    bench_pretrain.prepare_process("cpu")
    from scripts.bench import trainers as arms

    path = tmp_path_factory.mktemp("bench") / "lenvm"
    model = arms.save_fresh_model(TINY, path)
    rows = make_rows(drawn_lengths(TINY, TINY.rows, seed=3), TINY.shape.vocab, seed=3)
    return (
        arms.BareTrunk(model, TINY, "sdpa"),
        arms.OursInVerl(path, TINY, "sdpa"),
        arms.PaddedWithLMHead(model, TINY, "sdpa"),
        rows,
    )


def test_drawn_lengths_have_the_spread_that_the_preset_says():
    wide = replace(PRESETS["cpu-25m"], row_tokens=100_000)
    prompt, response = drawn_lengths(wide, 4000, seed=0).T
    assert prompt.mean() == pytest.approx(60, rel=0.03)
    assert response.mean() == pytest.approx(250, rel=0.03)
    assert response.std() == pytest.approx(150, rel=0.1)
    assert np.exp(np.log(response).mean()) < 0.9 * response.mean()  # a tail on the right
    assert drawn_lengths(TINY, 500, seed=0).sum(1).max() <= TINY.row_tokens
    assert (drawn_lengths(TINY, 9, seed=1) != drawn_lengths(TINY, 9, seed=2)).any()


def test_presets_have_the_sizes_in_their_names():
    assert trunk_parameters(PRESETS["cpu-25m"].shape) == pytest.approx(25e6, rel=0.02)
    large = PRESETS["gpu-1.5b"]
    total = trunk_parameters(large.shape) + large.shape.vocab * large.shape.hidden
    assert total == pytest.approx(1.54e9, rel=0.01)


def test_training_flops_are_those_that_torch_counts(trainers):
    trunk = trainers[0]
    n, attention = 40, trunk.trunk.config._attn_implementation
    trunk.trunk.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        trunk.step([(torch.arange(n)[None], torch.arange(n)[None])])
    trunk.trunk.set_attn_implementation(attention)
    dense = training_flops(TINY, [1] * n)  # sequences of one token: next to no attention
    causal = training_flops(TINY, [n]) - dense
    # Eager attention multiplies the masked half as well.
    assert counter.get_total_flops() == pytest.approx(dense + 2 * causal, rel=0.02)


def test_the_trunk_computes_each_completion_as_if_alone(trainers):
    trunk, ours, _, rows = trainers
    assert (  # so that the bare trunk has what makes ours fast
        trunk.trunk.config._attn_implementation
        == ours.worker.engine.module.model.config._attn_implementation
    )
    batches = ours.micro_batches(rows)
    assert len(batches) > 2
    packed = trunk.step(batches)
    gradient = trunk.trunk.layers[0].mlp.up_proj.weight.grad.clone()

    trunk.trunk.zero_grad()
    alone = 0.0
    for ids, positions in batches:
        starts = [*(positions[0] == 0).nonzero()[:, 0].tolist(), ids.shape[1]]
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            hidden = trunk.trunk(input_ids=ids[:, start:end]).last_hidden_state
            loss = hidden.mean() * (end - start) / ids.shape[1]
            loss.backward()
            alone += loss.item()
    assert packed == pytest.approx(alone, rel=1e-4, abs=1e-6)
    torch.testing.assert_close(
        gradient, trunk.trunk.layers[0].mlp.up_proj.weight.grad, rtol=1e-3, atol=1e-6
    )


def test_the_padded_trainer_does_the_same_optimisation_as_ours(trainers):
    _, ours, padded, rows = trainers
    theirs = [padded.step(rows) for _ in range(4)]
    losses = [ours.step(rows) for _ in range(4)]
    assert losses == pytest.approx(theirs, rel=1e-4)
    assert losses[-1] < losses[0]
    assert ours.seen == [ids.shape[1] for ids, _ in ours.micro_batches(rows)]
    assert sum(ours.seen) == sum(len(row.prompt_ids) + row.length for row in rows)


def test_the_padded_trainer_computes_logits_of_every_padded_token(trainers):
    _, _, padded, rows = trainers
    shapes = []
    handle = padded.lm.lm_head.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    padded.step(rows)
    handle.remove()
    lengths = [len(row.prompt_ids) + row.length for row in rows]
    chunks = [lengths[i : i + TINY.padded_rows] for i in range(0, len(rows), TINY.padded_rows)]
    assert shapes == [(len(chunk), max(chunk), TINY.shape.vocab) for chunk in chunks]


def test_the_matmul_ceiling_is_a_rate_of_this_machine():
    small, large = (
        product_rate("cpu", torch.float32, size=size, seconds=0.05) for size in (8, 256)
    )
    assert 1e5 < small < large < 1e15


def test_figures_are_medians_over_rounds_and_ratios_of_medians():
    def entry(trunk, ours, padded):
        rates = {"trunk": trunk, "ours": ours, "padded": padded}
        return {
            "tokens": 30,
            "lengths": [10, 20],
            "micro_batches": 1,
            "padded_tokens": 40,
            "seconds": {name: 30 / rate for name, rate in rates.items()},
            "cpu_seconds": {name: 60 / rate**2 for name, rate in rates.items()},
            "tokens_per_s": rates,
            "flops_per_s": {name: 1e9 * rate for name, rate in rates.items()},
            "ceiling": 4e11,
        }

    figures = summarize([entry(100, 90, 50), entry(10, 10, 10), entry(200, 160, 60)])
    assert figures["trainers"]["trunk"]["tokens_per_s"] == 100
    assert figures["trainers"]["trunk"]["share_of_matmul"] == 0.25
    assert figures["ours_to_trunk"] == 0.9 and figures["ours_to_padded"] == 1.8
    assert figures["ours_to_trunk_rounds"] == [0.9, 1.0, 0.8]
    assert figures["ours_to_trunk_by_cpu_time"] == 0.81
    assert figures["passes"] == {"ours_to_trunk": True, "ours_to_padded": True}
    assert figures["data"]["padded_over_real_tokens"] == pytest.approx(4 / 3, abs=1e-3)
    slow = summarize([entry(100, 84, 57)])
    assert slow["passes"] == {"ours_to_trunk": False, "ours_to_padded": False}


def test_lengths_of_a_rollout_file(tmp_path):
    rows = make_rows([(4, 10), (3, 80), (5, 20), (2, 7)], TINY.shape.vocab, seed=0)
    with RolloutWriter(tmp_path / "file", tokenizer_sha="toy", eos_ids=[1]) as writer:
        writer.append(rows)
    lengths, too_long = file_lengths(tmp_path / "file", replace(TINY, rows=3))
    assert lengths.tolist() == [[4, 10], [5, 20], [2, 7]] and too_long == 1
    with pytest.raises(ValueError, match="has 3 completions of at most 60 tokens"):
        file_lengths(tmp_path / "file", TINY)

    source = bench_pretrain.length_source(replace(TINY, rows=3), tmp_path / "file", 0)
    drawn = sorted((len(row.prompt_ids), row.length) for row in source(0))
    assert drawn == [(2, 7), (4, 10), (5, 20)]


def test_a_whole_run_prints_and_writes_its_figures(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(PRESETS, "cpu-25m", TINY)
    words = ["--rounds", "2", "--rows", "8", "--json", str(tmp_path / "f.json")]
    assert main(["pretrain", *words]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures == json.loads((tmp_path / "f.json").read_text())
    assert figures["preset"] == "cpu-25m" and figures["data"]["rows_per_step"] == 8
    assert set(figures["trainers"]) == {"trunk", "ours", "padded"}
    for entry in figures["trainers"].values():
        assert len(entry["tokens_per_s_rounds"]) == 2 and entry["tokens_per_s"] > 0
    assert figures["parameters"]["trunk_without_embedding"] == trunk_parameters(TINY.shape)
    assert figures["data"]["padded_over_real_tokens"] > 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_preset_without_a_gpu_ends_with_a_sentence(capsys):
    assert main(["pretrain", "--preset", "gpu-1.5b"]) == 1
    assert "--preset gpu-1.5b trains on a CUDA device" in capsys.readouterr().err


def test_a_missing_rollout_file_ends_with_a_sentence(tmp_path, capsys):
    assert main(["pretrain", "--rollouts", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err

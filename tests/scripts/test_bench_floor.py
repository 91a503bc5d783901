"""The floor of a step, worked by hand in tiny, and a run of its measurement."""

import json

import pytest
import torch

from scripts.bench import floor as bench_floor
from scripts.bench.hardware import Shape, copy_bandwidth, product_rate
from scripts.bench.harness import main
from scripts.bench.step_cost.floor import (
    against_the_floor,
    make_model,
    step_bytes,
    step_flops,
)

TINY = Shape(hidden=16, layers=2, heads=4, kv_heads=2, intermediate=24, vocab=40)


def weights_by_hand(shape: Shape) -> int:
    """Numbers in the trunk without embedding: qwen2 has biases at q, k and v, none elsewhere."""
    head = shape.hidden // shape.heads
    kv = shape.kv_heads * head
    attention = 2 * shape.hidden**2 + shape.hidden + 2 * (shape.hidden * kv + kv)
    layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden
    return shape.layers * layer + shape.hidden  # the last norm


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_step_reads_weights_and_the_prefixes_keys_once(dtype, size):
    model = make_model(TINY, device="cpu", dtype=dtype, context=8, is_policy=False)
    head = 16 * 16 + 16 + 16 + 1
    assert step_bytes(model, 0) == size * (weights_by_hand(TINY) + head)
    per_token = 2 * 2 * 2 * 4  # keys and values, layers, heads of 4
    assert step_bytes(model, 30) - step_bytes(model, 0) == size * 30 * per_token


def test_a_policy_reads_its_output_embedding_too():
    model = make_model(TINY, device="cpu", dtype=torch.float32, context=8, is_policy=True)
    assert step_bytes(model, 0) == 4 * (weights_by_hand(TINY) + 40 * 16)


def test_a_step_multiplies_every_weight_and_every_column_it_attends_to():
    model = make_model(TINY, device="cpu", dtype=torch.float32, context=8, is_policy=False)
    head = 16 * 16 + 16 + 16 + 1
    dense = 2 * (weights_by_hand(TINY) + head)
    # Per layer and column: 4 heads of 4, a product with the key and one with the value.
    columns = 2 * 31 * (4 * 4 * (2 + 2))
    assert step_flops(model, 5, 30) == 5 * (dense + columns)


def test_a_floor_is_what_binds():
    shapes = {"lenvm": TINY, "policy": TINY}
    run = {"device": "cpu", "dtype": torch.float32, "requests": [2], "candidates": 4}
    run |= {"context": 12, "steps": 1, "shapes": shapes}
    model = make_model(TINY, device="cpu", dtype=torch.float32, context=12, is_policy=False)
    (slow,) = against_the_floor(**run, bandwidth=1e30, rate=1e6)
    assert slow["lenvm_bound"] == "products"
    assert slow["lenvm_floor_ms"] == pytest.approx(1e-3 * step_flops(model, 8, 12), rel=1e-3)
    (narrow,) = against_the_floor(**run, bandwidth=1e6, rate=1e30)
    assert narrow["lenvm_bound"] == "memory"
    assert narrow["lenvm_floor_ms"] == pytest.approx(1e-3 * step_bytes(model, 24), rel=1e-3)


def test_products_have_a_rate():
    assert 1e6 < product_rate("cpu", torch.float32, size=32, seconds=0.01) < 1e15


def test_copying_has_a_bandwidth():
    assert 1e7 < copy_bandwidth("cpu", mib=1, times=2) < 1e14


def test_a_run_prints_one_json_object(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench_floor, "FLOOR_SHAPES", {"lenvm": TINY, "policy": TINY})
    threads = torch.get_num_threads()
    try:
        words = ["floor", "--requests", "1", "3", "--candidates", "4", "--context", "12"]
        assert main([*words, "--steps", "2", "--json", str(tmp_path / "out.json")]) == 0
    finally:
        torch.set_num_threads(threads)
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert (tmp_path / "out.json").read_text() == line + "\n"
    found = json.loads(line)
    assert found["settings"]["dtype"] == "bfloat16"
    assert [row["requests"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        assert row["lenvm_ms"] > 0 and row["policy_floor_ms"] > 0
        assert row["overhead"] == pytest.approx(1 + row["lenvm_ms"] / row["policy_ms"], abs=2e-3)
    assert found["rows"][1]["lenvm_floor_ms"] > found["rows"][0]["lenvm_floor_ms"]
    assert all(0 <= within <= total == 2 for within, total in found["within_bar"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
@pytest.mark.parametrize("name", ["floor", "guidance"])
def test_a_device_that_is_not_there_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "--device", "cuda"])
    assert "no CUDA device" in capsys.readouterr().err

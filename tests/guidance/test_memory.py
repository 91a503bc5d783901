"""Is what a scorer takes known before it is taken, and refused where it does not fit?"""

import re
from pathlib import Path

import pytest
import torch

from lenvm_rl.guidance.exact import memory, trunk
from lenvm_rl.guidance.exact.memory import (
    ScorerMemory,
    available_memory,
    group_headroom,
    machine_memory,
    parse_bytes,
)
from lenvm_rl.guidance.heads.q_head import load_lenvm, make_scorer, scorer_memory
from lenvm_rl.model import LengthValueModel
from tests.guidance.test_exact import TRUNKS, make_lenvm

SIZES = {"slots": 3, "max_length": 100, "max_candidates": 6}


def sized(head="state", *, dtype=torch.float32, frozen_trunk=False, trunk="qwen2"):
    model = make_lenvm(trunk)
    config = type(model.config)(
        **model.config.to_dict() | {"head": head, "frozen_trunk": frozen_trunk}
    )
    config.text_config = model.config.text_config
    model = LengthValueModel(config)
    model.model.to(dtype)
    return model


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_a_plan_on_meta_tensors_is_what_the_scorer_takes(trunk, dtype, fixed_shapes):
    model = sized(dtype=dtype, trunk=trunk)
    scorer = make_scorer(model, **SIZES, fixed_shapes=fixed_shapes)
    plan = scorer_memory(model.config, dtype=dtype, max_candidates=6, fixed_shapes=fixed_shapes)
    assert plan == scorer.memory
    assert plan.weights == sum(p.nbytes for p in model.parameters())
    store = scorer._store
    assert plan.cache(3, 100) == scorer.cache_bytes == store.keys.nbytes + store.values.nbytes


@pytest.mark.parametrize("frozen", [False, True])
def test_a_plan_of_candidate_heads(frozen):
    model = sized("candidate", frozen_trunk=frozen)
    build = {"fixed_shapes": False, "policy_states": True}
    scorer = make_scorer(model, **SIZES, **build)
    plan = scorer_memory(model.config, dtype=torch.float32, max_candidates=6, **build)
    assert plan == scorer.memory
    assert plan.cache(3, 100) == scorer.cache_bytes
    assert (plan.cache(3, 100) == 0) == frozen, "a head on the policy's states keeps nothing"


@pytest.mark.parametrize("page", [1, 16, 256])
@pytest.mark.parametrize("padding", [0, 1])
def test_what_is_said_to_fit_does_and_one_more_does_not(page, padding):
    plan = ScorerMemory(weights=0, bytes_per_token=12, spare=40, page=page, padding_pages=padding)
    for room in (10_000, 123_456, 10**7):
        length = plan.length_within(room)
        assert length == 0 or plan.cache(1, length) <= room < plan.cache(1, length + 1)
        rows = plan.rows_within(room, 500)
        assert plan.cache(rows, 500) <= room < plan.cache(rows + 1, 500) or rows == 0
        pages = plan.pages(3, 500, room=room)
        assert pages * 12 * page <= room or not pages
        assert pages <= plan.pages(3, 500) == plan.cache(3, 500) // (12 * page)


def test_the_refusal_has_the_arithmetic_and_numbers_that_fit():
    # Qwen2.5-1.5B in bfloat16 beside requests of 32,768 tokens.
    plan = ScorerMemory(weights=0, bytes_per_token=28_672, spare=40, page=256, padding_pages=1)
    assert plan.check(32_768, budget=2 * 2**30, free=70 * 2**30) == 2 * 2**30
    assert plan.cache(256, 200) < 2 * 2**30, "256 streams of chat in 2 GiB"
    with pytest.raises(ValueError) as refused:
        plan.check(32_768, budget=2**29, free=70 * 2**30)
    text = str(refused.value)
    assert "28,672 bytes per token x 33,280 columns" in text and "= 910.00MiB" in text
    length, amount = re.search(r"--max-model-len (\d+)\).*--lenvm-memory (\S+)\)", text).groups()
    plan.check(int(length), budget=2**29)
    plan.check(32_768, budget=parse_bytes(amount))
    with pytest.raises(ValueError, match="512.00MiB are free") as refused:
        plan.check(32_768, budget=2**30, free=2**29)
    assert "--lenvm-memory" not in str(refused.value), "no budget makes room that is not there"


@pytest.mark.parametrize("head", ["state", "candidate"])
def test_a_scorer_is_refused_before_it_takes_anything(head, monkeypatch):
    model = sized(head)
    need = make_scorer(model, **SIZES | {"slots": 1}).cache_bytes
    make_scorer(model, **SIZES, memory=need)
    monkeypatch.setattr(trunk, "KeyValueStore", None)  # nobody gets as far as that
    with pytest.raises(ValueError, match="do not fit"):
        make_scorer(model, **SIZES, memory=need - 1)
    monkeypatch.setattr(trunk, "available_memory", lambda device: need - 1)
    with pytest.raises(ValueError, match="are free"):
        make_scorer(model, **SIZES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_trunk_is_read_in_the_dtype_and_the_head_as_it_was_trained(tmp_path, dtype):
    model = make_lenvm()
    model.save_pretrained(tmp_path)
    found = load_lenvm(tmp_path, dtype)
    assert {p.dtype for p in found.model.parameters()} == {dtype}
    for mine, theirs in zip(found.score.parameters(), model.score.parameters(), strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2 << 30), ("2", 2 << 30), (0.5, 1 << 29), ("512 MiB", 1 << 29),
        ("3GB", 3 * 10**9), ("1.5gib", 3 << 29), ("800000000B", 800_000_000),
    ],
)  # fmt: skip
def test_amounts_of_memory(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "0", "2 gallons", True, "1e9"])
def test_what_is_no_amount_of_memory(text):
    with pytest.raises(ValueError, match="an amount of memory"):
        parse_bytes(text)


def test_what_is_said_can_be_read():
    for count in (1, 10_737_419, 5 * 2**30, 57 * 2**30 + 1):
        assert 0 <= parse_bytes(memory.in_units(count)) - count <= 2**30 / 100 + 1


V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file")


@pytest.mark.parametrize("names", [V2, V1])
def test_a_control_group_bounds_what_is_free(tmp_path, names, monkeypatch):
    limit, usage, cache = names
    assert group_headroom(tmp_path) is None
    (tmp_path / "memory").mkdir()
    (tmp_path / usage).write_text("700\n")
    (tmp_path / usage).with_name("memory.stat").write_text(f"anon 400\n{cache} 300\n")
    (tmp_path / limit).write_text("max\n")
    assert group_headroom(tmp_path) is None
    (tmp_path / limit).write_text("1000\n")
    assert group_headroom(tmp_path) == 600
    monkeypatch.setattr(memory, "group_headroom", lambda: 600)
    assert available_memory(torch.device("cpu")) == 600
    monkeypatch.setattr(memory, "group_headroom", lambda: 1 << 60)
    monkeypatch.setattr(memory, "machine_memory", lambda: 500)
    assert available_memory(torch.device("cpu")) == 500
    assert available_memory(torch.device("meta")) is None


def test_what_the_machine_has_left(tmp_path):
    assert machine_memory(tmp_path / "none") is None
    table = tmp_path / "meminfo"
    table.write_text("MemTotal:       100 kB\nMemAvailable:    7 kB\nBuffers:  1 kB\n")
    assert machine_memory(table) == 7 * 1024
    table.write_text("MemTotal:       100 kB\n")
    assert machine_memory(table) is None
    if Path("/proc/meminfo").exists():
        assert 1 << 20 < machine_memory() < 1 << 50

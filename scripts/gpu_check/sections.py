"""The sections: what is measured or checked on a device, each a function of (device, quick).

Models have random weights. Figures are plain numbers; a section that finds something wrong raises,
one that cannot run here raises `Skipped` with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor

from lenvm_rl.core import length_to_value, squared_error, value_of_logit
from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History
from lenvm_rl.guidance.exact.prefix_kernels import KERNELS, checked
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.model import LengthValueModel
from lenvm_rl.vllm.internals import VLLM_KERNELS
from scripts.bench.hardware import Shape, copy_bandwidth, product_rate, synchronize
from scripts.bench.step_cost.floor import (
    BARS,
    FLOOR_SHAPES,
    against_the_floor,
    make_model,
    step_flops,
)

GAMMA = 0.997
SMALL = Shape(hidden=256, layers=3, heads=4, kv_heads=2, intermediate=512, vocab=2048)
TESTS = Path(__file__).resolve().parents[2] / "tests"
TEST_FOLDERS = ("guidance", "model", "verl", "vllm")
_CLOSE = 0.15  # logits of order 1 in bfloat16, over three layers


class Skipped(Exception):
    """Why a section cannot run here."""


class Section(NamedTuple):
    """What runs, and how long it may take on a GPU."""

    run: Callable[[str, bool], dict[str, Any]]
    seconds: int


def machine(device: str, quick: bool) -> dict[str, Any]:
    """What the device is, and what it reaches: copying, and products of large matrices."""
    mib, size = (64, 512) if quick else (2048, 8192)
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "packages": [n for n in ("vllm", "verl", "flash_attn") if importlib.util.find_spec(n)],
        "copy_gb_per_s": round(copy_bandwidth(device, mib=mib) / 1e9, 1),
        "products_tflop_per_s": round(product_rate(device, torch.bfloat16, size=size) / 1e12, 2),
    }
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"name": about.name, "gib": round(about.total_memory / 2**30, 1)}
        found |= {"capability": f"{about.major}.{about.minor}", "cuda": torch.version.cuda}
    return found


def kernels(device: str, quick: bool) -> dict[str, Any]:
    """Which flash attention reproduces the small case; for those that do not, why."""
    if device != "cuda":
        raise Skipped("flash attention needs CUDA")
    found: dict[str, dict[str, str]] = {}
    for name, make in {**VLLM_KERNELS, **KERNELS}.items():
        found[name] = {}
        for dtype in (torch.bfloat16, torch.float16):
            for head in (64, 128):
                try:
                    checked(make(), head_dim=head, dtype=dtype, device=torch.device(device))
                    says = "ok"
                except Exception as error:
                    says = f"{type(error).__name__}: {error}"[:300]
                found[name][f"{dtype} x {head}"] = says
    usable = [name for name, x in found.items() if set(x.values()) == {"ok"}]
    return {"kernels": found, "usable": usable}


def graphs(device: str, quick: bool) -> dict[str, Any]:
    """Graphs are captured before the first request, replay what a CPU computes, and a capture that
    fails leaves the stream and the values as they were."""
    model = make_model(SMALL, device=device, dtype=torch.bfloat16, context=600, is_policy=False)
    reference = make_model(SMALL, device="cpu", dtype=torch.float32, context=600, is_policy=False)
    reference.load_state_dict(model.state_dict())
    scorer = _scorer(model, slots=8)
    before = _reserved(device)
    started = time.monotonic()
    prepared = scorer.prepare(16)
    synchronize(torch.device(device))
    figures: dict[str, Any] = {
        "graphs": prepared,
        "capture_s": round(time.monotonic() - started, 2),
        "graphs_mib": round((_reserved(device) - before) / 2**20),
    }
    steps = _values(scorer, model.config.vocab_size)
    expected = _values(_scorer(reference, slots=8), model.config.vocab_size)
    figures["worst_difference"] = round((steps - expected).abs().max().item(), 4)
    if not figures["worst_difference"] < _CLOSE:
        raise ValueError(f"replayed steps are off by {figures['worst_difference']}: {figures}")
    if device == "cuda":
        if not prepared:
            raise ValueError("no graph could be captured; the log says why")
        figures["after_a_failed_capture"] = _after_a_failure(model, steps)
    return figures


def _reserved(device: str) -> int:
    return torch.cuda.memory_reserved() if device == "cuda" else 0


def _after_a_failure(model: LengthValueModel, expected: Tensor) -> str:
    """A step that asks for a tensor's content cannot be captured."""
    scorer = _scorer(model, slots=8)
    fixed = scorer._fixed
    assert fixed is not None
    inner, stream = fixed._score, torch.cuda.current_stream()

    def asks(*args: Any) -> Tensor:
        result = inner(*args)
        if torch.cuda.is_current_stream_capturing():
            result.sum().item()
        return result

    fixed._score = asks
    found = _values(scorer, model.config.vocab_size)
    if torch.cuda.current_stream() != stream or fixed.graphs:
        raise ValueError("a failed capture has left another stream current, or graphs")
    worst = (found - expected).abs().max().item()
    if not worst < _CLOSE:
        raise ValueError(f"values after a failed capture are off by {worst}")
    return "stream and values as before"


def _scorer(
    model: LengthValueModel, *, slots: int, candidates: int = 16, fixed_shapes: bool | None = True
) -> ExactScorer:
    return ExactScorer(
        model, slots=slots, max_length=600, max_candidates=candidates, fixed_shapes=fixed_shapes
    )


def _values(scorer: ExactScorer, vocab: int, rows: int = 5, steps: int = 6) -> Tensor:
    """Logits of steps in which rows of unlike length grow, [steps, rows, 16] on the host."""
    rng = torch.Generator().manual_seed(3)
    histories = [
        History(torch.randint(2, vocab, (3 + 97 * row,), generator=rng).tolist(), [])
        for row in range(rows)
    ]
    slots = [scorer.open(history) for history in histories]
    found = []
    for step in range(steps):
        drawn = torch.rand(rows, vocab, generator=rng).argsort(1)[:, :16]
        there = drawn.to(scorer.device)
        found.append(scorer.score(slots, histories, there, torch.ones_like(there).bool()).cpu())
        for row, history in enumerate(histories):
            history.output.append(int(drawn[row, step]))
    return torch.stack(found)


def steps(device: str, quick: bool) -> dict[str, Any]:
    """Guided steps whose rows mostly have one candidate, as in real text: passes of the LenVM
    beyond one a step, and how often the host waits for the device within a step."""
    sizes = (1, 4) if quick else (1, 16, 64)
    shape = SMALL if quick else Shape(1024, 12, 16, 4, 4096, 32_768)
    model = make_model(shape, device=device, dtype=torch.bfloat16, context=600, is_policy=False)
    return {"by_requests": {rows: _steps(model, rows, 8 if quick else 40) for rows in sizes}}


def _steps(model: LengthValueModel, rows: int, count: int) -> dict[str, Any]:
    device, vocab = model.device, model.config.vocab_size
    scorer = _scorer(model, slots=rows, candidates=24, fixed_shapes=None)
    scorer.prepare(20)
    guide = Guide(scorer, eos_token_ids=[1], max_candidates=24)
    asked = [
        GuidedRow(
            row,
            row,
            GuidanceSettings(mode="at_most", target=200),
            History(torch.randint(2, vocab, (40 + row,)).tolist(), []),
            40 + row,
        )
        for row in range(rows)
    ]
    waits, seconds = 0, []
    for step in range(3 + count):
        logits = torch.randn(rows, vocab)
        certain = torch.rand(rows) < (0.88 if step >= 3 else 0.0)  # a share seen on text
        logits[certain, torch.randint(2, vocab, (int(certain.sum()),))] += 40.0
        logits[:, 1] = -torch.inf  # nobody ends
        logits = logits.to(device)
        if step == 3:
            start = scorer.stats.passes - scorer.stats.steps
        synchronize(device)
        started = time.perf_counter()
        seen = _waits(lambda there=logits: guide.apply(there, asked))
        waits += seen if step >= 3 else 0  # before, prompts are read
        synchronize(device)
        seconds.append(time.perf_counter() - started)
        chosen = logits.float().softmax(-1).multinomial(1).flatten().tolist()
        for row, token in zip(asked, chosen, strict=True):
            row.history.output.append(token)
    extra = scorer.stats.passes - scorer.stats.steps - start
    return {
        "steps": count,
        "extra_passes": extra,
        "host_waits": waits if device.type == "cuda" else None,
        "ms": round(1e3 * sorted(seconds[3:])[count // 2], 3),
        "graphs": scorer._fixed.graphs if scorer._fixed else 0,
    }


def _waits(work: Callable[[], None]) -> int:
    """How often torch makes the host wait while `work` runs; 0 where it cannot tell."""
    if not torch.cuda.is_available():
        work()
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)


def floor(device: str, quick: bool) -> dict[str, Any]:
    """Steps of a LenVM of 1.5 B and of a policy of 7 B shape against what the device allows."""
    tiny = Shape(hidden=64, layers=2, heads=4, kv_heads=2, intermediate=128, vocab=512)
    mib, size = (64, 512) if quick else (1024, 8192)
    rows = against_the_floor(
        device=device,
        dtype=torch.bfloat16,
        requests=[1, 4] if quick else [1, 8, 32, 64],
        candidates=16,
        context=64 if quick else 2048,
        steps=4 if quick else 20,
        shapes={"lenvm": tiny, "policy": tiny} if quick else FLOOR_SHAPES,
        bandwidth=copy_bandwidth(device, mib=mib),
        rate=product_rate(device, torch.bfloat16, size=size),
        advance=lambda line: print(line, file=sys.stderr),
    )
    within = {name: sum(row[name] <= most for row in rows) for name, most in BARS.items()}
    return {"rows": rows, "bar": BARS, "within_bar": within}


def training(device: str, quick: bool) -> dict[str, Any]:
    """Training steps of a LenVM of 1.5 B shape: tokens per second, and the share of the rate of
    large matrix products that the needed operations reach (MFU).

    Float32 weights and AdamW, bfloat16 products; full rows, so that nothing is padded.
    """
    shape = SMALL if quick else FLOOR_SHAPES["lenvm"]
    rows, length, count = (2, 64, 3) if quick else (4, 1024, 8)  # about 50 GiB
    model = make_model(
        shape, device=device, dtype=torch.float32, context=length, is_policy=False
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    ids = torch.randint(2, shape.vocab, (rows, length), device=device)
    left = torch.arange(length, 0, -1, device=device).float().expand(rows, -1)
    target = length_to_value(left, gamma=GAMMA)
    losses, seconds = [], []
    for step in range(2 + count):
        synchronize(torch.device(device))
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16):
            z = model.length_logits(ids)
        loss = squared_error(value_of_logit(z, gamma=GAMMA, target="return"), target).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(torch.device(device))
        if step >= 2:
            seconds.append(time.perf_counter() - started)
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise ValueError(f"the loss does not fall: {losses[0]:.4g} to {losses[-1]:.4g}")
    step_s = sorted(seconds)[count // 2]
    needed = 3 * step_flops(model, rows * length, length // 2)  # forward, and backward twice that
    rate = product_rate(device, torch.bfloat16, size=512 if quick else 8192)
    return {
        "tokens_per_s": round(rows * length / step_s),
        "tflop_per_s": round(needed / step_s / 1e12, 3),
        "mfu": round(needed / step_s / rate, 4),
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1)
        if device == "cuda"
        else None,
    }


def tests(device: str, quick: bool) -> dict[str, Any]:
    """The tests that are marked gpu; those of an engine only where it is installed."""
    if not importlib.util.find_spec("pytest"):
        raise Skipped("pytest is not installed")
    missing = [name for name in ("verl", "vllm") if not importlib.util.find_spec(name)]
    folders = [x for x in TEST_FOLDERS[: 1 if quick else None] if x not in missing]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", *(str(TESTS / folder) for folder in folders)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=TESTS.parent, env={**os.environ}, check=False
    )
    summary = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip()[-300:]]
    counts = {kind: int(n) for n, kind in re.findall(r"(\d+) ([a-z]+)", summary[0])}
    if done.returncode not in (0, 5):  # 5: none was selected
        raise ValueError(f"{summary[0]}\n{done.stdout[-2000:]}")
    return {"counts": counts, "left_out": [f"{name} is not installed" for name in missing]}


SECTIONS = {
    "machine": Section(machine, 45),
    "kernels": Section(kernels, 45),
    "graphs": Section(graphs, 60),
    "steps": Section(steps, 60),
    "floor": Section(floor, 130),
    "training": Section(training, 80),
    "tests": Section(tests, 60),
}
"""By name, in order; together eight minutes at most."""

"""Opening a long response in the viewer, and using it: seconds until it is seen.

    python -m scripts.bench viewer --tokens 30000

Makes a small untrained LenVM with room for the response, writes the page as `lenvm view` does,
opens it from disk in headless Chromium and uses it: the pointer goes over tokens and along the
curve, and the threshold slider moves. The response has no line break: the slowest text to lay out.

    open_seconds      from the request to the second frame after everything was drawn
    hover, curve, slider
                      seconds from an input to the frame that shows it, median and worst
The last line of stdout is one JSON object.
"""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lenvm_rl.demo import policy_path
from lenvm_rl.model import from_scratch, load_tokenizer, save_checkpoint
from lenvm_rl.pages.view import view_text
from recipes.demo_policy.tokenizer import WORDS
from scripts.bench import harness
from scripts.bench.harness import Failed

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
FRAMES = "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"


@dataclass(frozen=True, kw_only=True)
class Options(harness.Options):
    """The page."""

    tokens: int = 30_000
    """Of the response."""
    repeats: int = 3
    """Openings; the median counts."""
    page: Path | None = None
    """Keep the page here."""


def run(options: Options) -> dict[str, Any]:
    """Size of the page, and times."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise Failed("there is no Chromium: scripts/setup.sh --browser")
    with tempfile.TemporaryDirectory() as folder:
        page = options.page or Path(folder) / "page.html"
        figures = write_page(Path(folder), page, options.tokens)
        return figures | use_page(chromium, page, options.repeats)


def write_page(folder: Path, page: Path, count: int) -> dict[str, Any]:
    """The page of one response of `count` tokens, EOS included."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(policy_path())
    model = from_scratch(
        tokenizer, hidden_size=32, num_layers=1, max_positions=count + 100, gamma=0.9998
    )
    save_checkpoint(model, tokenizer, folder / "lenvm")
    rng = random.Random(0)
    response = "".join(rng.choices(WORDS, k=count - 1))
    started = time.perf_counter()
    written = view_text([folder / "lenvm"], "12 + 7 = ?", response, page)
    assert written["tokens"] == count, written
    return {
        "tokens": count,
        "page_bytes": written["bytes"],
        "write_seconds": round(time.perf_counter() - started, 2),
    }


def use_page(chromium: str, page: Path, repeats: int) -> dict[str, Any]:
    """Times of opening and of using the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        opened = []
        for _ in range(repeats):
            tab = browser.new_page(viewport={"width": 1400, "height": 900})
            started = time.perf_counter()
            tab.goto(page.resolve().as_uri())
            tab.evaluate(FRAMES)
            opened.append(time.perf_counter() - started)
            if len(opened) < repeats:
                tab.close()
        figures = {
            "open_seconds": round(statistics.median(opened), 2),
            "hover": hover(tab),
            "curve": curve(tab),
            "slider": slider(tab),
            "browser": browser.version,
        }
        browser.close()
    return figures


def hover(tab: Any) -> dict[str, float]:
    box = tab.locator("#texts").bounding_box()
    spots = [(box["x"] + 20 + 9 * i, box["y"] + 40 + 24 * (i % 6)) for i in range(60)]
    return timed(tab, lambda i: tab.mouse.move(*spots[i]), len(spots))


def curve(tab: Any) -> dict[str, float]:
    box = tab.locator("#cross").bounding_box()
    return timed(tab, lambda i: tab.mouse.move(box["x"] + 80 + 15 * i, box["y"] + 80), 60)


def slider(tab: Any) -> dict[str, float]:
    def move(i: int) -> None:
        tab.locator("#threshold").evaluate(
            "(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", 400 + 20 * i
        )

    return timed(tab, move, 20)


def timed(tab: Any, act: Any, count: int) -> dict[str, float]:
    """Seconds from an act to its frame; a round trip to the browser is included."""
    seconds = []
    for i in range(count):
        started = time.perf_counter()
        act(i)
        tab.evaluate(FRAMES)
        seconds.append(time.perf_counter() - started)
    return {
        "median": round(statistics.median(seconds), 3),
        "worst": round(max(seconds), 3),
    }

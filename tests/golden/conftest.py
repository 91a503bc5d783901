"""Comparison with the stored figures, to the bit where the processor rounds as theirs did."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from tests.golden.subjects import ROLLOUTS, first_forward, sample, write_rollouts

FIGURES = Path(__file__).with_name("figures.json")
WRITE = os.environ.get("GOLDEN") == "write"


def leaves(found, path=""):
    """{"a.0.b": number or text} of nested dictionaries and lists."""
    if not isinstance(found, (dict, list, tuple)):
        return {path: found}
    items = found.items() if isinstance(found, dict) else enumerate(found)
    return {p: x for key, part in items for p, x in leaves(part, f"{path}.{key}").items()}


def same(a, b, rel):
    """Whether two leaves agree within `rel` of their size, or of 1 where they are smaller."""
    if not (isinstance(a, float) and isinstance(b, (int, float))) or rel == 0:
        return a == b or (a != a and b != b)
    return (a != a and b != b) or math.isclose(a, b, rel_tol=rel, abs_tol=rel)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums are split by threads
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def stored():
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


@pytest.fixture(scope="session")
def rounds_alike(one_thread, stored):
    """Whether the policy's first forward has here the very bits that it had there."""
    found = first_forward()
    if WRITE:
        stored["first_forward"] = found
    return stored["first_forward"] == found


@pytest.fixture
def changed(stored, rounds_alike):
    """changed(name, what was found): {figure: (stored, found)} of those that are not equal, or on
    another processor not within `rel`."""

    def check(name, found, *, rel=1e-6):
        if WRITE:
            stored[name] = found
            lines = [f"{json.dumps(key)}: {json.dumps(stored[key])}" for key in sorted(stored)]
            FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        wanted, found = leaves(stored[name]), leaves(json.loads(json.dumps(found)))
        rel = 0 if rounds_alike else rel
        return {
            path: (x, found.get(path, "missing"))
            for path, x in wanted.items()
            if not same(x, found.get(path, "missing"), rel)
        }

    return check


@pytest.fixture(scope="session")
def sampled(rounds_alike, tmp_path_factory):
    """The 24 completions as they are sampled here."""
    if WRITE:
        rows = sample(tmp_path_factory.mktemp("sampled"))
        ROLLOUTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    if not rounds_alike:
        pytest.skip(
            "this processor rounds the policy's first logits otherwise than the one of the stored "
            "completions: what is sampled may differ from the first near-tie on"
        )
    return rows if WRITE else sample(tmp_path_factory.mktemp("sampled"))


@pytest.fixture(scope="session")
def samples_alike(sampled):
    """Asked for by tests that sample: skipped with `sampled`."""


@pytest.fixture(scope="session")
def rollouts(tmp_path_factory):
    """The stored completions as a rollout file."""
    rows = json.loads(ROLLOUTS.read_text())
    return write_rollouts(tmp_path_factory.mktemp("stored") / "rollouts", rows)

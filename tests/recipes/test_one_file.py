"""LenVM in one file: it runs, it learns, and of the library it needs the core alone."""

import ast
from pathlib import Path

import pytest
import torch

from recipes.lenvm_in_one_file import Completion, LenVM, main, train

FILE = Path(__file__).resolve().parents[2] / "recipes" / "lenvm_in_one_file.py"


def test_of_the_library_it_imports_the_core_alone():
    found = set()
    for node in ast.walk(ast.parse(FILE.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lenvm_rl"):
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("lenvm_rl")}
    assert found == {"lenvm_rl", "lenvm_rl.core"}  # the former says where the demo policy lies


def test_it_runs_from_sampling_to_guided_text():
    figures = main(["--count", "10", "-n", "4", "--max-tokens", "200", "--epochs", "1"])
    assert figures["mre"] > 0 and figures["mre_naive"] > 0
    assert sorted(figures["guided"]) == [30, 60, 90]
    assert all(row["length"] > 0 for row in figures["guided"].values())


def test_it_learns_a_length_that_never_varies():
    """Ten tokens after one prompt, three after another: z tells them apart at every token."""
    torch.manual_seed(0)
    from lenvm_rl.demo import policy_path
    from recipes.lenvm_in_one_file import predict

    lenvm = LenVM(str(policy_path()))
    rows = [Completion(0, [5, 6], list(range(10, 20)), True)] * 8
    rows += [Completion(1, [7, 8], [20, 21, 22], True)] * 8
    train(lenvm, rows, gamma=0.9, epochs=60)
    lenvm.eval()
    asked = [[5, 6], [5, 6, *range(10, 17)], [7, 8]]
    assert predict(lenvm, asked, gamma=0.9).tolist() == pytest.approx([10, 3, 3], abs=0.7)


@pytest.mark.slow
def test_it_knows_lengths_before_the_first_token_and_keeps_to_a_length():
    figures = main([])
    assert figures["mre"] < 0.6 * figures["mre_naive"]
    for target, row in figures["guided"].items():
        assert row["length"] <= target, (target, row)
    kept = [row["correct"] - row["correct_truncated"] for row in figures["guided"].values()]
    assert sum(kept) > -0.15  # of 40 answers a target; in the runs seen it was positive

"""Ground truths that the run's reward function cannot grade end the run before it starts."""

import datasets
import pytest
from omegaconf import OmegaConf

from lenvm_rl.verl.data_checks import check_truths


class Data:
    """What is read of verl's data set."""

    def __init__(self, *truths, source="openai/gsm8k", **extra):
        rows = [
            {
                "data_source": source,
                "reward_model": {"style": "rule", "ground_truth": truth},
                "extra_info": {"index": i, **extra},
            }
            for i, truth in enumerate(truths)
        ]
        self.dataframe = datasets.Dataset.from_list(rows)


def config(path, **kwargs):
    function = {"path": path, "name": "compute_score", "reward_kwargs": kwargs}
    return OmegaConf.create({"reward": {"custom_reward_function": function}})


@pytest.mark.parametrize(
    ("path", "data", "kwargs"),
    [
        ("pkg://reward_fns.gsm8k", Data("18", "1,200"), {}),
        ("pkg://reward_fns.l1_exact", Data("18"), {}),
        ("pkg://reward_fns.l1_exact", Data("18", source="mine"), {"grader": "gsm8k"}),
        ("pkg://reward_fns.code_tests", Data("assert f(1) == 2", source="code/x"), {}),
        (
            "/some/reward_fns/code_tests.py",
            Data({"inputs": ["2"], "outputs": ["4"]}, source="code/x"),
            {},
        ),
        (
            "pkg://reward_fns.code_tests",
            Data("def check(c):\n    assert c(1) == 2\n", source="code/x", entry_point="f"),
            {},
        ),
        ("pkg://mine.rewards", Data("whatever"), {}),  # not ours to judge
        (None, Data("whatever"), {}),
    ],
)
def test_what_can_be_graded_passes(path, data, kwargs):
    check_truths((data,), config(path, **kwargs))


@pytest.mark.parametrize(
    ("path", "data", "sentence"),
    [
        ("pkg://reward_fns.gsm8k", Data("18", "two", "three"), "2 of 3 prompts .* row 2: .*'two'"),
        ("pkg://reward_fns.l1_exact", Data("two"), "1 of 1 prompts .*'two' has no number"),
        ("pkg://reward_fns.l1_exact", Data("18", source="mine"), "'mine' tells none"),
        ("pkg://reward_fns.code_tests", Data("assert True", source="code/x"), "do nothing"),
        (
            "pkg://reward_fns.code_tests",
            Data("def check(c):\n    assert c(1) == 2\n", source="code/x"),
            "never calls it",
        ),
        (
            "pkg://reward_fns.code_tests",
            Data({"inputs": ["2"], "outputs": ["\n"]}, source="code/x"),
            "every program would pass",
        ),
    ],
)
def test_what_cannot_be_graded_is_refused(path, data, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_truths((data,), config(path))


def test_data_without_ground_truths_is_refused():
    data = Data("18")
    data.dataframe = data.dataframe.remove_columns("reward_model")
    for empty in (data, Data(None)):
        with pytest.raises(ValueError, match="row 1: no reward_model.ground_truth"):
            check_truths((empty,), config("pkg://reward_fns.gsm8k"))

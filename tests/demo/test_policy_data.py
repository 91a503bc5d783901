"""Data files for training the shipped policy: what verl reads, and budgets the policy can read."""

import pyarrow.parquet as pq
import pytest

from lenvm_rl.demo import policy_path, task
from lenvm_rl.demo.policy_data import UNIT, budget_messages, policy_rows, write_policy_data
from lenvm_rl.model import load_tokenizer


def read(path):
    return pq.read_table(path).to_pylist()


def test_files_hold_different_problems_with_their_answers(tmp_path):
    write_policy_data(tmp_path, train=30, val=10, seed=1)
    train, val = read(tmp_path / "train.parquet"), read(tmp_path / "val.parquet")
    assert (len(train), len(val)) == (30, 10)
    asked = [row["prompt"][0]["content"] for row in train + val]
    assert len(set(asked)) == 40
    for row in train:
        expression = row["prompt"][0]["content"].removesuffix(" = ?")
        answer = row["reward_model"]["ground_truth"]
        assert answer == str(eval(expression))
        assert task.grade(f"the answer is {answer}", answer)
        assert "budget" not in row
    assert [row["extra_info"]["index"] for row in train] == list(range(30))


def test_budgets_are_in_the_prompt_and_in_the_data(tmp_path):
    write_policy_data(tmp_path, train=200, val=5, seed=1, budgets=(20, 100))
    rows = read(tmp_path / "train.parquet")
    budgets = {row["budget"] for row in rows}
    assert budgets == {24, 32, 40, 48, 56, 64, 72, 80, 88, 96}
    for row in rows:
        assert row["extra_info"]["target"] == row["budget"]
        assert row["prompt"][0]["content"].startswith(f"{row['budget'] // UNIT} ; ")


def test_the_policys_vocabulary_can_say_every_budget():
    tokenizer = load_tokenizer(policy_path())
    problem = task.sample_problems(1, seed=0)[0]
    for budget in (UNIT, 99 * UNIT):
        text = budget_messages(problem, budget)[0]["content"]
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids[:2]).split() == [str(budget // UNIT), ";"] or ids[1] == 7


@pytest.mark.parametrize("budget", [0, -8, 12, 100 * UNIT])
def test_budgets_that_cannot_be_said_are_refused(budget):
    problem = task.sample_problems(1, seed=0)[0]
    with pytest.raises(ValueError, match=f"budget {budget} cannot be asked for"):
        budget_messages(problem, budget)


def test_a_range_without_a_budget_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no multiple of 8 tokens lies within"):
        write_policy_data(tmp_path, train=3, val=1, seed=0, budgets=(9, 15))


def test_rows_without_budgets_ask_as_the_task_does():
    problem = task.sample_problems(1, seed=0)[0]
    assert policy_rows([problem])[0]["prompt"] == task.messages(problem)

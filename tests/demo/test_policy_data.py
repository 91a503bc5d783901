"""Data files for training the shipped policy: what verl reads, budgets, the family held out."""

import pyarrow.parquet as pq
import pytest

from lenvm_rl.demo import policy_path, task
from lenvm_rl.demo.policy_data import policy_rows, write_policy_data
from lenvm_rl.model import load_tokenizer


def read(path):
    return pq.read_table(path).to_pylist()


def question(row):
    (message,) = row["prompt"]
    return message["content"]


def test_files_hold_different_problems_with_their_answers(tmp_path):
    write_policy_data(tmp_path, train=30, val=10, seed=1)
    train, val = read(tmp_path / "train.parquet"), read(tmp_path / "val.parquet")
    assert (len(train), len(val)) == (30, 10)
    assert len({question(row) for row in train + val}) == 40
    for row in train + val:
        answer = row["reward_model"]["ground_truth"]
        assert answer == str(eval(question(row).removesuffix(" = ?")))
        assert task.grade(f"the answer is {answer}", answer)
        assert row["extra_info"]["family"] == "sums" and "*" not in question(row)
        assert row["extra_info"]["level"] in task.LEVELS
        assert row["data_source"] == "demo" and "budget" not in row
    assert [row["extra_info"]["index"] for row in train] == list(range(30))


def test_transfer_is_the_family_that_training_never_sees(tmp_path):
    write_policy_data(tmp_path, train=8, val=12, seed=1, budgets=(20, 200))
    rows = read(tmp_path / "transfer.parquet")
    assert len(rows) == 12
    for row in rows:
        asked, colon, problem = question(row).partition(": ")
        assert colon and asked == f"about {row['budget']} tokens"
        assert "*" in problem and row["extra_info"]["family"] == "products"
        assert row["reward_model"]["ground_truth"] == str(eval(problem.removesuffix(" = ?")))
    write_policy_data(tmp_path / "plain", train=8, val=12, seed=1)
    same = [question(row) for row in read(tmp_path / "plain" / "transfer.parquet")]
    assert same == [question(row).partition(": ")[2] for row in rows]


def test_budgets_are_in_the_prompt_and_in_the_data(tmp_path):
    write_policy_data(tmp_path, train=200, val=5, seed=1, budgets=(20, 60))
    rows = read(tmp_path / "train.parquet")
    budgets = [row["budget"] for row in rows]
    assert min(budgets) >= 20 and max(budgets) <= 60 and len(set(budgets)) > 30
    for row in rows:
        assert row["extra_info"]["target"] == row["budget"]
        assert question(row).startswith(f"about {row['budget']} tokens: ")


def test_the_policys_vocabulary_can_say_every_budget():
    tokenizer = load_tokenizer(policy_path())
    problem = task.sample_problems(1, seed=0)[0]
    for budget in (1, 20, 999):
        (row,) = policy_rows([problem], budgets=[budget])
        ids = tokenizer(question(row))["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == f"about {budget} tokens: {problem.text}"


@pytest.mark.parametrize("budgets", [(0, 9), (-8, -2), (60, 20)])
def test_a_range_without_a_budget_is_refused(tmp_path, budgets):
    with pytest.raises(ValueError, match="pass two numbers of tokens, the lower one first"):
        write_policy_data(tmp_path, train=3, val=1, seed=0, budgets=budgets)


def test_rows_without_budgets_ask_as_the_task_does():
    problem = task.sample_problems(1, seed=0)[0]
    assert policy_rows([problem])[0]["prompt"] == task.messages(problem)

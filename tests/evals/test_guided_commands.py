"""`lenvm eval length-control` and `tradeoff` as users call them: the demo policy, and bad input."""

import json

import pytest

from lenvm_rl.cli.graders import graded
from lenvm_rl.prompts.prompt import Prompt, read_prompts
from tests.cli.command_line import invoke, run

DEMO = ["--policy", "demo", "--lenvm", "demo", "--prompts", "demo:2"]


def refused(*words):
    """The sentence that a user reads."""
    with pytest.raises(ValueError) as refusal:
        invoke(*words)
    return str(refusal.value)


@pytest.mark.parametrize("command", ["length-control", "tradeoff"])
def test_help_has_an_example(command):
    result = invoke("eval", command, "--help")
    assert result.exit_code == 0 and "Example" in result.stdout


def test_length_control_of_the_demo_policy(tmp_path):
    words = ["eval", "length-control", *DEMO, "--controls", "at_most", "--targets", "12"]
    words += ["--methods", "unguided,guided,truncated,countdown", "--max-tokens", 100]
    words += ["--out", tmp_path, "--json", tmp_path / "figures.json"]
    figures = run(*words)
    assert figures["at_most_guided_score"] == 100, "12 tokens and the end are forced"
    assert figures["targets"] == [12] and figures["unit"] == "tokens"
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    assert (tmp_path / "length_control.png").stat().st_size > 0
    assert run(*words) == figures, "what is kept is read, not sampled"
    words[words.index("--out") + 1] = tmp_path / "again"
    assert run(*words, "--rollouts", tmp_path / "rollouts") == figures


def test_tradeoff_of_the_demo_policy(tmp_path):
    figures = run(
        *("eval", "tradeoff", *DEMO, "--betas=-30", "-n", 2, "--max-tokens", 200),
        *("--prompt-budgets", 20, "--out", tmp_path),
    )
    assert 0 <= figures["unguided_pass@1"] <= figures["unguided_pass@2"] <= 1
    assert (tmp_path / "tradeoff.png").stat().st_size > 0
    assert (tmp_path / "tradeoff_prompted.csv").stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--targets", "many"], "--targets must be whole numbers"),
        (["--unit", "letters"], "unit must be some of tokens, words"),
        (["--methods", "pleading"], "methods must be some of"),
        (["--targets", "600", "--max-tokens", "512"], "raise it above the largest target"),
        (["--server", "http://127.0.0.1:9"], "no server answers"),
        (["--grader", "magic"], "give auto, none, one of"),
        (["--samples", "2"], "--samples of `lenvm eval length-control` is now -n"),
    ],
)
def test_what_length_control_refuses(words, sentence, tmp_path):
    assert sentence in refused("eval", "length-control", *DEMO, "--out", tmp_path, *words)


@pytest.mark.parametrize("name", ["control", "lifebench"])
def test_old_names_say_the_new_one(name):
    assert f"`lenvm eval {name}` is now `lenvm eval length-control`" in refused(
        "eval", name, "-n", 2
    )


def test_a_value_model_or_a_server_is_needed(tmp_path):
    for command in ("length-control", "tradeoff"):
        words = ["eval", command, "--policy", "demo", "--prompts", "demo:2", "--out", tmp_path]
        assert "there is nothing to guide by" in refused(*words)


def test_accuracy_needs_a_grader(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "w3", "ground_truth": "w4"}) + "\n")
    words = ["eval", "tradeoff", "--policy", "demo", "--lenvm", "demo", "--out", tmp_path]
    assert "grades these prompts (data source 'prompts')" in refused(*words, "--prompts", file)
    words += ["--prompts", "demo:2", "--thinking-budgets", 10]
    assert "kept by vLLM's server" in refused(*words)


def prompt(source, truth="4", **extra):
    message = {"role": "user", "content": "q"}
    return Prompt(
        prompt_id="a", messages=[message], data_source=source, ground_truth=truth, extra=extra
    )


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("demo/easy", "the answer is 4"),
        ("gsm8k", "#### 4"),
        ("openai/gsm8k", "#### 4"),
        ("math/math500", "\\boxed{4}"),
        ("HuggingFaceH4/MATH-500", "\\boxed{4}"),
    ],
)
def test_graders_are_chosen_by_the_data_source(source, text):
    prompts, grade = graded("auto", [prompt(source)])
    assert grade(text, prompts[0].ground_truth) == 1 and not grade("5", prompts[0].ground_truth)


def test_mathvista_is_graded_by_its_own_fields():
    fields = {"question_type": "multi_choice", "answer_type": "text", "answer": "red"}
    asked = prompt("multiple_choice/mathvista", "B", **fields, choices=["blue", "red"])
    free = {"question_type": "free_form", "answer_type": "float", "answer": "1.2"}
    counted = prompt("math/mathvista", "1.2", **free, precision=1.0)
    found, grade = graded("auto", [asked, counted])
    assert grade("\\boxed{B}", found[0].ground_truth) and grade(
        "\\boxed{red}", found[0].ground_truth
    )
    assert grade("\\boxed{1.21}", found[1].ground_truth)
    with pytest.raises(ValueError, match="lacks precision"):
        graded("auto", [prompt("math/mathvista", "1.2", **free)])


def test_a_truth_that_cannot_be_graded_is_named_before_sampling(tmp_path):
    rows = [{"prompt": "a", "ground_truth": "4"}, {"prompt": "b", "ground_truth": "four"}]
    path = tmp_path / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"gsm8k\.jsonl, row 2: .*'four' has no number"):
        graded("auto", read_prompts(path))


def test_humanevals_test_text_is_called_with_its_entry_point():
    text = "def check(candidate):\n    assert candidate(1) == 2\n"
    (asked,), grade = graded("auto", [prompt("code/mine", text, entry_point="f")])
    assert grade("def f(x):\n    return x + 1", asked.ground_truth) == 1.0
    assert grade("print('nonsense')", asked.ground_truth) == 0.0
    with pytest.raises(ValueError, match="never calls it"):
        graded("auto", [prompt("code/mine", text)])


def test_one_set_at_a_time():
    with pytest.raises(ValueError, match=r"need different graders \(demo, gsm8k\)"):
        graded("auto", [prompt("demo/x"), prompt("gsm8k")])
    assert graded("auto", [prompt("lifebench/create-en")])[1] is None
    with pytest.raises(ValueError, match="cannot be loaded"):
        graded("reward_fns.gsm8k:nothing", [prompt("gsm8k")])

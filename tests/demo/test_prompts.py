"""Prompts of the command line: both families, the ones asked without thinking, their sources."""

import pytest

from lenvm_rl.demo import task
from lenvm_rl.demo.prompts import NO_THINKING_EVERY, demo_prompts, resolve_prompts
from reward_fns.graders import grader_of


def question(prompt):
    (message,) = prompt.messages
    return message["content"]


@pytest.mark.parametrize(("name", "family"), [("demo", "sums"), ("demo-products", "products")])
def test_a_name_stands_for_a_family_of_problems(name, family):
    prompts = resolve_prompts(f"{name}:40", seed=3)
    assert prompts == demo_prompts(40, seed=3, family=family)
    assert prompts[:7] == resolve_prompts(f"{name}:40", seed=3, limit=7)
    problems = task.sample_problems(40, seed=3, family=family)
    for number, (prompt, problem) in enumerate(zip(prompts, problems, strict=True)):
        assert prompt.prompt_id == f"{name}-3-{number}"
        assert question(prompt).removesuffix(" /no_think") == problem.text
        assert prompt.ground_truth == str(problem.answer)
        assert ("*" in question(prompt)) == (family == "products")


def test_some_are_asked_without_thinking_and_are_a_source_of_their_own():
    prompts = demo_prompts(5 * NO_THINKING_EVERY, seed=0)
    direct = [p for p in prompts if question(p).endswith(task.NO_THINKING)]
    assert len(direct) == 5
    assert {p.data_source for p in direct} == {"demo/no-thinking"}
    rest = {p.data_source for p in prompts if p not in direct}
    assert rest == {f"demo/{level}" for level in task.LEVELS}
    products = demo_prompts(60, seed=0, family="products")
    assert {p.data_source.partition("/")[0] for p in products} == {"demo-products"}


@pytest.mark.parametrize("name", ["demo:0", "demo-products:-3", "demo-products:many"])
def test_a_count_that_is_none_is_refused(name):
    kind = name.partition(":")[0]
    with pytest.raises(ValueError, match=f"write {kind}:COUNT with a positive number: {kind}:300"):
        resolve_prompts(name, seed=0)


@pytest.mark.parametrize("family", task.FAMILIES)
def test_every_source_has_its_grader(family):
    sources = {p.data_source for p in demo_prompts(60, seed=0, family=family)}
    assert len(sources) == 4 and {grader_of(source) for source in sources} == {"demo"}

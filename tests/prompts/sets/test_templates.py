"""The paper's templates, byte for byte, in every set that uses them."""

import pytest

from lenvm_rl.prompts.sets import PROMPT_SETS, TEMPLATES, ask

# the whole text of a prompt "Q", counted and written out independently of the module
WRITTEN = {
    "math": b"Please reason step by step, and put your final answer within \\boxed{}.\n\nQ",
    "instructions": b"Please follow the instructions below.\n\nQ",
    "python": b"Please solve the programming task below in Python step by step and then provide "
    b"the complete solution in a single Python code block.\n\nQ",
    "cpp": b"Please solve the programming task below in C++ step by step and then provide the "
    b"complete solution in a single C++ code block.\n\nQ",
    "open": b"Please reason step by step, and provide your final answer at the end.\n\nQ",
    "plain": b"Q",
}


def test_templates_are_the_papers_byte_for_byte():
    said = {name: ask(name, "Q")[0]["content"].encode() for name in TEMPLATES}
    assert said == WRITTEN


def test_a_prompt_is_one_user_message():
    assert ask("math", "Q") == [{"role": "user", "content": WRITTEN["math"].decode()}]


@pytest.mark.parametrize("question", ["\\frac{1}{2}", "{prompt}", "{0} {} %s", "  blanks stay \n"])
def test_questions_stand_in_prompts_as_they_are(question):
    assert ask("plain", question)[0]["content"] == question
    assert ask("math", question)[0]["content"].encode() == WRITTEN["math"][:-1] + question.encode()


def test_own_words_and_words_without_a_place():
    assert ask("Say: {prompt}!", "Q")[0]["content"] == "Say: Q!"
    with pytest.raises(ValueError, match="template 'maths': give one of math, instructions"):
        ask("maths", "Q")


def test_every_set_says_what_it_is():
    for name, one in PROMPT_SETS.items():
        assert name == one.name and one.about and one.licence and one.columns
        own = "{prompt}" in one.template  # words of its own, as `PromptSet.template` has it
        assert own or set(one.template.split(" or ")) <= set(TEMPLATES)
        assert one.hub.count("/") == 1

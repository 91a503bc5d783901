"""WildChat's script filter against its definition, IFEval's arguments, MT-Bench's turns."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.prompts.sets import ask, load_prompt_set
from lenvm_rl.prompts.sets.instructions import UNCHECKED, known_scripts
from reward_fns.graders import grader_of
from reward_fns.ifeval_rules import RULES
from tests.prompts.sets.files import lines, without

GREEK = set("αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩϵϑϕϖς")  # noqa: RUF001
RANGES = [
    *[(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)],
    *[(0x2B740, 0x2B81F), (0x2B820, 0x2CEAF), (0xF900, 0xFAFF)],  # Chinese, seven blocks
    *[(0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xFF), (0x100, 0x17F), (0x180, 0x24F), (0x1E00, 0x1EFF)],
]


def allowed(letter):
    """The filter as the paper's data generation states it, one letter at a time."""
    return letter in GREEK or any(low <= ord(letter) <= high for low, high in RANGES)


def test_every_character_is_judged_as_the_definition_says():
    for code in range(0x30000):
        one = chr(code)
        assert known_scripts(one) == (not one.isalpha() or allowed(one)), hex(code)


@given(st.text())
def test_a_text_passes_where_all_its_letters_do(text):
    assert known_scripts(text) == all(allowed(one) for one in text if one.isalpha())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Let α = 3², naïve → 5 € 👍", True),
        ("写一首诗 about 春天", True),
        ("Напиши стихи", False),
        ("こんにちは", False),
        ("mostly English, one é and one ж", False),
        ("ªbc", False),  # a letter of Latin-1, but not of the allowed part
        ("", True),
    ],
)
def test_texts(text, kept):
    assert known_scripts(text) == kept


def chat(text, language="English", role="user"):
    turns = [{"role": role, "content": text}, {"role": "assistant", "content": "Да."}]
    return {"conversation": turns, "language": language, "toxic": False, "redacted": True}


def test_wildchat_keeps_first_turns_in_two_languages_and_known_scripts(tmp_path):
    rows = [
        chat("Write."),
        chat("Écris.", "French"),
        chat("写", "Chinese"),
        chat("ж"),
        chat(" "),
        chat("Write."),
    ]
    loaded = load_prompt_set("wildchat", source=lines(tmp_path / "x.jsonl", rows))
    assert [p.messages for p in loaded.prompts] == [
        ask("instructions", "Write."),
        ask("instructions", "写"),
    ]
    assert [p.data_source for p in loaded.prompts] == ["wildchat/English", "wildchat/Chinese"]
    assert loaded.prompts[0].extra == {"language": "English", "toxic": False, "redacted": True}
    assert (loaded.rows, loaded.filtered, loaded.duplicates) == (6, 3, 1)


IFEVAL = {
    "key": 1000,
    "prompt": "Write 300 words without commas.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "at least", "num_words": 300}],
}


def test_ifeval_is_asked_as_it_stands_and_carries_its_instructions(tmp_path):
    prompt = load_prompt_set("ifeval", source=lines(tmp_path / "x.jsonl", [IFEVAL])).prompts[0]
    assert prompt.messages == ask("plain", IFEVAL["prompt"])
    assert prompt.extra == without(IFEVAL, "prompt")
    assert prompt.prompt_id == "ifeval-1000"


def test_ifevals_arguments_are_free_of_other_instructions_arguments(tmp_path):
    pq.write_table(pa.Table.from_pylist([IFEVAL]), tmp_path / "x.parquet")
    padded = pq.read_table(tmp_path / "x.parquet").to_pylist()[0]
    assert padded["kwargs"][0] == {"relation": None, "num_words": None}
    prompt = load_prompt_set("ifeval", source=tmp_path / "x.parquet").prompts[0]
    assert prompt.extra == without(IFEVAL, "prompt")


def test_ifevals_checkable_prompts_have_their_rules_as_ground_truth(tmp_path):
    other = {
        "key": 7,
        "prompt": "Answer in Kannada without commas.",
        "instruction_id_list": ["punctuation:no_comma", "language:response_language"],
        "kwargs": [{}, {"language": "kn"}],
    }
    found = load_prompt_set("ifeval_rules", source=lines(tmp_path / "x.jsonl", [other, IFEVAL]))
    assert (len(found.prompts), found.filtered) == (1, 1)
    [prompt] = found.prompts
    assert json.loads(prompt.ground_truth) == without(IFEVAL, "key", "prompt")
    assert prompt.data_source == grader_of(prompt.data_source) == "ifeval_rules"
    assert set(UNCHECKED).isdisjoint(RULES) and len({*UNCHECKED, *RULES}) == 25


MT = {"question_id": 95, "category": "math", "turns": ["Add.", "Now subtract."], "reference": ["3"]}


@pytest.mark.parametrize("turns", ["turns", "prompt"])  # FastChat's and the hub's name
def test_mt_bench_asks_the_first_turn_and_carries_all(tmp_path, turns):
    row = {turns: MT["turns"], **without(MT, "turns")}
    prompt = load_prompt_set("mt_bench", source=lines(tmp_path / "x.jsonl", [row])).prompts[0]
    assert prompt.messages == ask("plain", "Add.")
    assert prompt.extra == {"turns": MT["turns"], "category": "math", "reference": ["3"]}
    assert prompt.data_source == "mt_bench/math"


@pytest.mark.parametrize(
    ("name", "row", "sentence"),
    [
        ("wildchat", without(chat("x"), "language"), "no column 'language'"),
        ("wildchat", chat("x", role="system"), "begins with 'system'"),
        ("ifeval", without(IFEVAL, "kwargs"), r"no column 'kwargs' \(their arguments"),
        ("ifeval", without(IFEVAL, "instruction_id_list"), "no column 'instruction_id_list'"),
        ("ifeval", {**IFEVAL, "kwargs": [{}]}, "2 instructions, but 1 'kwargs'"),
        ("mt_bench", {**MT, "turns": ["Add.", ""]}, "turns must be texts"),
        ("mt_bench", without(MT, "category"), "no column 'category'"),
    ],
)
def test_rows_that_lack_something(tmp_path, name, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_prompt_set(name, source=lines(tmp_path / "x.jsonl", [row]))


def test_tinystories_asks_for_the_rest_of_a_story(tmp_path):
    rows = ["One day, a cat slept.\n\nThen it woke up.", "A story of one paragraph."]
    file = tmp_path / "stories.json"
    file.write_text(json.dumps(rows))
    loaded = load_prompt_set("tinystories", source=file)
    assert loaded.filtered == 1 and len(loaded.prompts) == 1
    prompt = loaded.prompts[0]
    assert (prompt.prompt_id, prompt.data_source) == ("tinystories-train-0", "tinystories")
    words = "Continue this story to its end.\n\nOne day, a cat slept."
    assert prompt.messages == [{"role": "user", "content": words}]

"""LIFEBench's tasks keep their placeholders and say what scores are reported by."""

import pytest

from lenvm_rl.prompts.sets import load_prompt_set
from tests.prompts.sets.files import lines, without

TASK = "Say how. \n\n[Requirement] Your response must be {word_count_type} {word_count} words long."
ROW = {
    "id": 7,
    "category": "qa",
    "type": "Open",
    "lang": "en",
    "task": TASK,
    "raw_data": "Say how",
}
CHINESE = {**ROW, "id": 8, "lang": "cn", "task": "字数必须{word_count_type} {word_count}字。"}


def test_a_task_is_a_message_with_its_placeholders(tmp_path):
    loaded = load_prompt_set("lifebench", source=lines(tmp_path / "x.jsonl.gz", [ROW, CHINESE]))
    assert [p.messages[0]["content"] for p in loaded.prompts] == [TASK, CHINESE["task"]]
    assert [p.data_source for p in loaded.prompts] == ["lifebench/qa-en", "lifebench/qa-cn"]
    assert loaded.prompts[0].extra == without(ROW, "task", "raw_data")
    assert loaded.prompts[0].prompt_id == "lifebench-7"


def test_the_official_number_of_items_is_kept(tmp_path):
    path = lines(tmp_path / "x.jsonl", [ROW, {**ROW, "id": 9}])
    both = load_prompt_set("lifebench", source=path)
    assert [p.prompt_id for p in both.prompts] == ["lifebench-7", "lifebench-9"]
    one = load_prompt_set("lifebench", source=path, keep_duplicates=False)
    assert [p.prompt_id for p in one.prompts] == ["lifebench-7"] and one.duplicates == 1


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**ROW, "task": "Say how in {word_count} words."}, "the task lacks {word_count_type}"),
        ({**ROW, "lang": "de"}, "'lang' must be one of .*, got 'de'"),
        (without(ROW, "category"), "no column 'category'"),
        (without(ROW, "task"), "no column 'task'"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path, row, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_prompt_set("lifebench", source=lines(tmp_path / "x.jsonl", [row]))

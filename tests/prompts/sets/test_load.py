"""Sets are deduplicated, shuffled and split by the content of their prompts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.prompts.sets import column_set, load_prompt_set, prompt_digest
from tests.prompts.sets.files import lines

Q = column_set("q")


def loaded(path, texts, **settings):
    return load_prompt_set(Q, source=lines(path, [{"q": text} for text in texts]), **settings)


def texts_of(prompts):
    return [prompt.messages[0]["content"] for prompt in prompts]


def test_equal_prompts_are_kept_once_in_order(tmp_path):
    found = loaded(tmp_path / "x.jsonl", ["a", "b", "a ", "\nb", "c"])
    assert texts_of(found.prompts) == ["a", "b", "c"]
    assert found.counts() == {
        "rows": 5,
        "filtered": 0,
        "duplicates": 2,
        "excluded": 0,
        "prompts": 3,
        "heldout": 0,
    }


def test_a_seed_shuffles_alike_whatever_the_order_of_the_rows(tmp_path):
    texts = [f"t{i}" for i in range(50)]
    one = texts_of(loaded(tmp_path / "x.jsonl", texts, seed=1).prompts)
    assert one == texts_of(loaded(tmp_path / "y.jsonl", texts[::-1], seed=1).prompts)
    assert sorted(one) == sorted(texts) and one != texts
    assert one != texts_of(loaded(tmp_path / "x.jsonl", texts, seed=2).prompts)
    assert texts_of(loaded(tmp_path / "x.jsonl", texts, seed=1, limit=7).prompts) == one[:7]


def test_held_out_prompts_are_never_on_the_other_side(tmp_path):
    texts = [f"t{i}" for i in range(400)]
    whole = loaded(tmp_path / "x.jsonl", texts, heldout=0.25)
    assert not set(texts_of(whole.prompts)) & set(texts_of(whole.heldout))
    assert len(whole.prompts) + len(whole.heldout) == 400
    assert 60 <= len(whole.heldout) <= 140  # 100 expected, sd 8.7
    # another file with some of them, shuffled: each prompt stays on its side
    part = loaded(tmp_path / "y.jsonl", texts[100:300], heldout=0.25, seed=5)
    assert set(texts_of(part.heldout)) == set(texts_of(whole.heldout)) & set(texts[100:300])
    # a larger share holds out what a smaller one did, and more
    more = loaded(tmp_path / "x.jsonl", texts, heldout=0.5)
    assert set(texts_of(whole.heldout)) < set(texts_of(more.heldout))


def test_prompts_of_another_file_are_excluded(tmp_path):
    test = loaded(tmp_path / "test.jsonl", ["a", "b"]).prompts
    train = loaded(tmp_path / "train.jsonl", ["b", "c", " a"], exclude=test)
    assert texts_of(train.prompts) == ["c"] and train.excluded == 2
    with pytest.raises(ValueError, match="no prompts left of 2 rows .*2 excluded"):
        loaded(tmp_path / "same.jsonl", ["a", "b"], exclude=test)


def test_ids_are_distinct_even_where_the_data_sets_are_not(tmp_path):
    rows = [{"Problem": f"p{i}", "Answer": i, "ID": "same"} for i in range(3)]
    found = load_prompt_set("aime", source=lines(tmp_path / "x.jsonl", rows))
    assert [p.prompt_id for p in found.prompts] == ["aime-same", "aime-same-row2", "aime-same-row3"]


def prompt(text, *, role="user", images=()):
    messages = [{"role": role, "content": text}]
    return Prompt(prompt_id="x", messages=messages, images=list(images))


@given(st.text(), st.text())
def test_digests_differ_where_the_stripped_texts_do(a, b):
    same = a.strip() == b.strip()
    assert (prompt_digest(prompt(a)) == prompt_digest(prompt(b))) == same


def test_digests_see_roles_and_images():
    digests = {
        prompt_digest(prompt("a")),
        prompt_digest(prompt("a", role="system")),
        prompt_digest(prompt("a", images=["i"])),
        prompt_digest(prompt("a", images=["j"])),
        prompt_digest(prompt("a", images=["i", "j"])),
    }
    assert len(digests) == 5


def test_settings_that_make_no_sense(tmp_path):
    with pytest.raises(ValueError, match="no prompt set 'gsm9k': choose one of deepmath, wildchat"):
        load_prompt_set("gsm9k")
    for settings, sentence in [
        ({"heldout": 1.0}, r"heldout must be a share in \[0, 1\), got 1.0"),
        ({"heldout": -0.1}, "heldout must be a share"),
        ({"limit": 0}, "limit must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            loaded(tmp_path / "x.jsonl", ["a"], **settings)
    with pytest.raises(ValueError, match="no prompts left of 0 rows"):
        loaded(tmp_path / "empty.jsonl", [])

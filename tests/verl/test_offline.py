"""Does a rollout file give every completion once per epoch, and go on exactly where it stopped?"""

import itertools
import json

import pytest

from lenvm_rl.core import gamma_from_lengths
from lenvm_rl.rollouts import Rollout, RolloutWriter
from lenvm_rl.verl.pretrain.facts import read_facts
from lenvm_rl.verl.pretrain.offline import NoGeneration, OfflineSource
from lenvm_rl.verl.pretrain.settings import LengthValueSettings
from tests.verl.engines import make_rows

LIMITS = {"max_prompt_length": 64, "max_response_length": 64}


def write(path, rows, **fields):
    settings = {"tokenizer_sha": "abc", "vocab_size": 48, "eos_ids": [1], **fields}
    with RolloutWriter(path, **settings) as writer:
        writer.append(rows)
    return str(path)


def source(path, *, batch_size=8, epochs=2, **settings):
    facts = read_facts(path, tokenizer_sha="abc", **LIMITS)
    chosen = LengthValueSettings(train_rollouts=path, **{"window_rows": 16, **settings})
    return OfflineSource(facts, chosen, batch_size=batch_size, epochs=epochs)


def names(rows):
    return [row.prompt_id for row in rows]


def all_batches(src):
    return list(iter(src.next_rows, []))


def test_facts_of_a_file(tmp_path):
    rows = make_rows(30, cut_every=10)
    rows[0].policy = {"name": "toy", "revision": "7"}
    rows[0].sampling = {"temperature": 0.7, "seed": 3}
    facts = read_facts(write(tmp_path / "r", rows), tokenizer_sha="abc", **LIMITS)
    lengths = [row.length for row in rows]
    assert (facts.rows, facts.finished_rows, facts.tokens) == (30, 27, sum(lengths))
    assert facts.share_truncated == pytest.approx(0.1)
    assert facts.longest_prompt == max(len(row.prompt_ids) for row in rows)
    assert facts.longest_response == max(lengths)
    assert facts.suggested_gamma == pytest.approx(gamma_from_lengths(lengths))
    assert facts.policy == {"name": "toy", "revision": "7", "tokenizer_sha": "abc"}
    assert facts.sampling == {"temperature": 0.7}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_prompt_length": 4}, r"prompt of prompt_id 'p\d+'.*data.max_prompt_length=4.*raise"),
        ({"max_response_length": 9}, r"response of .* more than data.max_response_length=9"),
    ],
)
def test_a_row_beyond_a_limit_is_named(tmp_path, limits, message):
    path = write(tmp_path / "r", make_rows(30))
    with pytest.raises(ValueError, match=message):
        read_facts(path, tokenizer_sha="abc", **{**LIMITS, **limits})


def test_another_tokenizer_is_refused(tmp_path):
    path = write(tmp_path / "r", make_rows(3))
    with pytest.raises(ValueError, match="written with tokenizer abc, but tokenizer xyz"):
        read_facts(path, tokenizer_sha="xyz", **LIMITS)


def test_a_missing_column_is_refused(tmp_path):
    import pyarrow.parquet as pq

    path = write(tmp_path / "r.parquet", make_rows(3))
    pq.write_table(pq.read_table(path).drop_columns(["response_ids"]), path)
    with pytest.raises(ValueError, match=r"lacks the columns \['response_ids'\]"):
        read_facts(path, tokenizer_sha="abc", **LIMITS)


def test_every_completion_comes_once_per_epoch_in_full_batches(tmp_path):
    src = source(write(tmp_path / "r", make_rows(30)))
    batches = all_batches(src)
    assert [len(batch) for batch in batches] == [8] * 7 + [4]
    assert len(batches) == src.total_steps and src.steps_per_epoch == 4
    order = list(itertools.chain.from_iterable(names(batch) for batch in batches))
    first, second = order[:30], order[30:]
    assert set(first) == set(second) == set(names(make_rows(30)))
    assert first != second
    assert src.epoch == 2.0


@pytest.mark.parametrize(("truncated", "expected"), [("drop", 20), ("censored", 30)])
def test_dropped_completions_do_not_come_and_do_not_count(tmp_path, truncated, expected):
    rows = make_rows(30, cut_every=3)
    src = source(write(tmp_path / "r", rows), truncated=truncated, epochs=1)
    order = list(itertools.chain.from_iterable(all_batches(src)))
    assert len(order) == src.rows == expected
    assert any(row.truncated for row in order) is (truncated == "censored")


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_saved_position_continues_with_the_very_next_completion(tmp_path, at):
    path = write(tmp_path / "r", make_rows(30, cut_every=5))
    whole = [names(batch) for batch in all_batches(source(path))]
    stopped = source(path)
    before = [names(stopped.next_rows()) for _ in range(at)]
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = source(path)
    resumed.load_state_dict(state)
    assert before + [names(batch) for batch in all_batches(resumed)] == whole
    assert resumed.epoch == 2.0


@pytest.mark.parametrize("change", [{"seed": 1}, {"grouped": True}, {"window_rows": 17}])
def test_another_order_cannot_be_resumed(tmp_path, change):
    path = write(tmp_path / "r", make_rows(30))
    state = source(path).state_dict()
    with pytest.raises(ValueError, match="cannot resume"):
        source(path, **change).load_state_dict(state)


def test_grouped_batches_hold_the_completions_of_a_prompt(tmp_path):
    rows = [
        Rollout(
            prompt_id=f"p{i}",
            sample_id=k,
            prompt_ids=[2, 2 + i],
            response_ids=[3] * k + [1],
            finish_reason="stop",
        )
        for i in range(12)
        for k in range(4)
    ]
    path = write(tmp_path / "r", rows)
    grouped = source(path, grouped=True, epochs=1, window_rows=64)
    for batch in all_batches(grouped):
        assert sorted(names(batch))[::4] == sorted(set(names(batch)))
    mixed = source(path, epochs=1, window_rows=64)
    assert len(set(names(mixed.next_rows()))) > 2


def test_many_cut_completions_are_announced(tmp_path, caplog):
    path = write(tmp_path / "r", make_rows(30, cut_every=10))
    source(path)
    assert "10.0 % of the completions" in caplog.text
    assert "short responses are over-represented" in caplog.text


def test_a_file_of_cut_completions_only_is_refused(tmp_path):
    path = write(tmp_path / "r", make_rows(4, cut_every=1))
    with pytest.raises(
        ValueError, match="all 4 completions .* lenvm.truncated=drop leaves them out"
    ):
        source(path)


def test_offline_training_never_samples():
    with pytest.raises(RuntimeError, match="does not sample"):
        NoGeneration.create(config=None, llm_client=None).generate_sequences(None)

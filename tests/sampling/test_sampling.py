"""Do prompts become the same rollout file, interrupted or not?"""

import os
import signal
import subprocess
import sys
import time

import pytest
from transformers import AutoTokenizer

from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.rollouts import RolloutReader
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.run import completion_seed
from lenvm_rl.sampling.transformers.engine import sample_to_file
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request
from tests.tiny import VOCAB, make_policy, make_tokenizer

SETTINGS = {"n": 4, "max_tokens": 24, "temperature": 1.3, "seed": 7}


def prompts(count=6):
    return [
        Prompt(
            prompt_id=f"p{i}",
            messages=[{"role": "user", "content": " ".join(f"w{2 + i + j}" for j in range(1 + i))}],
            data_source="words",
            ground_truth=str(i),
        )
        for i in range(count)
    ]


def rows_of(path):
    """Rows by key, without the log-probabilities, whose last bits depend on the batch."""
    rows = {}
    for row in RolloutReader(path).iter_rows():
        assert (row.prompt_id, row.sample_id) not in rows
        rows[row.prompt_id, row.sample_id] = {**row.to_dict(), "response_logprobs": None}
    return rows


def test_rows_hold_what_was_asked_and_what_was_sampled(tiny_policy, tmp_path):
    report = sample_to_file(tiny_policy, prompts(), tmp_path / "out", **SETTINGS)
    rows = list(RolloutReader(tmp_path / "out").iter_rows())
    assert {(r.prompt_id, r.sample_id) for r in rows} == {
        (f"p{i}", k) for i in range(6) for k in range(4)
    }
    for row in rows:
        assert row.truncated == (row.response_ids[-1] != 1)
        assert row.length <= 24 and len(row.response_logprobs) == row.length
        assert row.ground_truth == row.prompt_id[1:] and row.data_source == "words"
        assert row.sampling["temperature"] == 1.3 and row.sampling["max_tokens"] == 24
        assert row.policy["name"] == str(tiny_policy)
    assert report.rows == 24 and report.rows_resumed == 0
    assert report.tokens == sum(r.length for r in rows)
    assert report.mean_length == pytest.approx(report.tokens / 24)
    assert report.share_truncated == pytest.approx(sum(r.truncated for r in rows) / 24)
    assert report.to_dict()["tokens_per_s"] > 0


def test_a_row_is_reproduced_from_its_own_seed(tiny_policy, tmp_path):
    sample_to_file(tiny_policy, prompts(2), tmp_path / "out", **SETTINGS)
    sampler = ContinuousSampler.from_pretrained(str(tiny_policy))
    for row in RolloutReader(tmp_path / "out").iter_rows():
        assert row.sampling["seed"] == completion_seed(7, row.prompt_id, row.sample_id)
        again = Request(row.prompt_ids, 24, temperature=1.3, seed=row.sampling["seed"])
        assert sampler.generate([again])[0].token_ids == row.response_ids


def test_batch_size_and_interruption_leave_the_same_file(tiny_policy, tmp_path):
    whole = tmp_path / "whole"
    sample_to_file(tiny_policy, prompts(), whole, batch_size=16, **SETTINGS)
    # An interrupted run is a file with some of the rows: here the first two prompts' first samples.
    part = tmp_path / "part"
    sample_to_file(tiny_policy, prompts(6), part, batch_size=3, **{**SETTINGS, "n": 2})
    report = sample_to_file(tiny_policy, prompts(), part, batch_size=5, **SETTINGS)
    assert report.rows_resumed == 12 and report.rows == 24
    assert rows_of(part) == rows_of(whole)
    finished = sample_to_file(tiny_policy, prompts(), part, **SETTINGS)
    assert finished.rows_resumed == 24 and finished.tokens == 0
    assert finished.mean_length == pytest.approx(report.mean_length)


@pytest.mark.parametrize(
    "change", [{"seed": 8}, {"temperature": 1.0}, {"max_tokens": 20}, {"n": 3}, {"top_k": 5}]
)
def test_resuming_with_other_settings_is_refused(tiny_policy, tmp_path, change):
    sample_to_file(tiny_policy, prompts(2), tmp_path / "out", **SETTINGS)
    before = rows_of(tmp_path / "out")
    with pytest.raises(ValueError, match="same arguments, or write to another directory"):
        sample_to_file(tiny_policy, prompts(2), tmp_path / "out", **{**SETTINGS, **change})
    assert rows_of(tmp_path / "out") == before


def test_prompts_that_cannot_be_sampled_are_counted_and_the_others_are_not_concerned(
    tiny_policy, tmp_path
):
    def asked(name, text, **fields):
        return Prompt(prompt_id=name, messages=[{"role": "user", "content": text}], **fields)

    odd = [
        asked("long", "w5 " * 200),
        asked("half", "w5 \ud83d"),
        asked("seen", "w5", images=["data:image/png,"]),
        Prompt(prompt_id="talk", messages=[{"role": "system", "content": "w3"}]),
    ]
    failures = []
    report = sample_to_file(
        tiny_policy, [*odd, *prompts(2)], tmp_path / "out", on_failure=failures.append, **SETTINGS
    )
    assert report.failures == {
        "prompt over the context": 4,
        "text is not Unicode": 4,
        "prompt with pictures": 4,
        "no chat template": 4,
    }
    assert report.rows == 8 and report.rows_missing == 16
    long = next(failure for failure in failures if failure.task.prompt_id == "long")
    assert "prompt of 200 tokens" in long.detail and "128" in long.detail
    assert {key[0] for key in rows_of(tmp_path / "out")} == {"p0", "p1"}


@pytest.mark.parametrize("eos", [1, 5, [5, 6]])
def test_responses_end_at_every_eos_of_tokenizer_and_generation_config(tmp_path, eos):
    """A fine-tuned checkpoint may have kept the base model's generation configuration."""
    policy = make_policy("llama")
    policy.generation_config.eos_token_id = eos
    policy.save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    report = sample_to_file(tmp_path / "policy", prompts(), tmp_path / "out", **SETTINGS)
    ends = {1, *([eos] if isinstance(eos, int) else eos)}
    rows = list(RolloutReader(tmp_path / "out").iter_rows())
    for row in rows:
        assert not ends & set(row.response_ids[:-1])
        assert (row.response_ids[-1] in ends) == (row.finish_reason == "stop")
    assert any(row.finish_reason == "stop" for row in rows) and report.rows == 24
    assert RolloutReader(tmp_path / "out").metadata["eos_ids"] == sorted(ends)


def test_ids_of_a_padded_vocabulary_are_kept_and_counted(tmp_path):
    make_policy("llama", vocab_size=VOCAB + 16).save_pretrained(tmp_path / "policy")
    make_tokenizer().save_pretrained(tmp_path / "policy")
    report = sample_to_file(tmp_path / "policy", prompts(), tmp_path / "out", **SETTINGS)
    rows = list(RolloutReader(tmp_path / "out").iter_rows())
    assert report.rows_with_unknown_ids == sum(max(row.response_ids) >= VOCAB for row in rows) > 0
    assert RolloutReader(tmp_path / "out").metadata["vocab_size"] == VOCAB + 16
    again = sample_to_file(tmp_path / "policy", prompts(), tmp_path / "out", **SETTINGS)
    assert again.rows_with_unknown_ids == report.rows_with_unknown_ids


def test_arguments_of_the_chat_template_are_in_the_prompts_and_in_the_file(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if short %}w47{% endif %}"
    )
    make_policy("llama").save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    for name, arguments in (("short", {"short": True}), ("plain", None)):
        sample_to_file(
            tmp_path / "policy",
            prompts(2),
            tmp_path / name,
            chat_template_args=arguments,
            **SETTINGS,
        )
        reader = RolloutReader(tmp_path / name)
        assert reader.metadata.get("chat_template_args") == arguments
        assert all((row.prompt_ids[-1] == 47) == bool(arguments) for row in reader.iter_rows())


def test_no_prompts_twice_the_same_prompt_and_no_samples_are_refused(tiny_policy, tmp_path):
    with pytest.raises(ValueError, match="no prompts"):
        sample_to_file(tiny_policy, [], tmp_path / "out")
    with pytest.raises(ValueError, match="'p0' occurs twice"):
        sample_to_file(tiny_policy, [*prompts(1), *prompts(1)], tmp_path / "out")
    with pytest.raises(ValueError, match="at least 1 completion"):
        sample_to_file(tiny_policy, prompts(1), tmp_path / "out", n=0)


def test_prompts_go_through_the_chat_template_where_there_is_one(tiny_policy):
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    prompt = prompts(3)[2]
    assert encode_prompt(tokenizer, prompt) == [4, 5, 6]
    chat = Prompt(
        prompt_id="chat", messages=[{"role": "system", "content": "w3"}, *prompt.messages]
    )
    with pytest.raises(ValueError, match="'chat': the prompt is a conversation.*no chat template"):
        encode_prompt(tokenizer, chat)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w47{% endif %}"
    )
    assert encode_prompt(tokenizer, chat) == [3, 4, 5, 6, 47]


def test_a_picture_is_not_left_out_in_silence(tiny_policy):
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    seen = Prompt(prompt_id="seen", messages=prompts(1)[0].messages, images=["data:image/png,"])
    with pytest.raises(ValueError, match="prompt 'seen' has 1 pictures, and only text is sampled"):
        encode_prompt(tokenizer, seen)


@pytest.mark.slow
def test_kill_9_during_sampling_loses_and_repeats_nothing(tiny_policy, tmp_path):
    arguments = {"n": 40, "max_tokens": 100, "seed": 3, "batch_size": 4, "flush_seconds": 0}
    out = tmp_path / "out"
    program = (
        "import lenvm_rl.sampling.transformers.engine as s\n"
        "from tests.sampling.test_sampling import prompts\n"
        f"s.sample_to_file({str(tiny_policy)!r}, prompts(), {str(out)!r}, **{arguments!r})\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", program], env=environment)
    deadline = time.monotonic() + 300
    while len(list(out.glob("part-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    report = sample_to_file(tiny_policy, prompts(), out, **arguments)
    assert 60 <= report.rows_resumed < 240
    sample_to_file(tiny_policy, prompts(), tmp_path / "whole", **arguments)
    assert rows_of(out) == rows_of(tmp_path / "whole")

"""Guidance inside a running vLLM: exact values, untouched rows, log-probabilities, lengths.

One engine with the processor, which checks every value against a full recompute, and one without.
"""

import json
import os
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from lenvm_rl.demo import policy_path
from lenvm_rl.model import LengthValueModel
from tests.vllm.conftest import ENGINE

pytestmark = pytest.mark.slow
EOS = 1
TILT = {"lenvm_mode": "tilt", "lenvm_beta": -6.0, "lenvm_top_k": 12, "lenvm_min_p": 0.0}


@pytest.fixture(scope="module")
def plain(vllm):
    return vllm.LLM(str(policy_path()), **ENGINE)


@pytest.fixture(scope="module")
def audit_file(tmp_path_factory):
    return tmp_path_factory.mktemp("audit") / "audit.json"


@pytest.fixture(scope="module")
def guided(vllm, lenvm, audit_file):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENVM_AUDIT_FILE", str(audit_file))
        patch.setenv("LENVM_AUDIT_VALUES", "1")
        patch.setenv("LENVM_CHECKPOINT", str(lenvm))
        yield vllm.LLM(
            str(policy_path()),
            logits_processors=["scripts.bench.audit:AuditedGuidance"],
            additional_config={"lenvm": {"checkpoint": str(lenvm)}},
            logprobs_mode="processed_logprobs",
            **ENGINE,
        )


def run(vllm, engine, prompts, asked, **settings):
    """Completions; `asked` is one mapping of arguments, or one per prompt."""
    asked = asked if isinstance(asked, list) else [asked] * len(prompts)
    settings = {"temperature": 1.0, "max_tokens": 96, **settings}
    params = [
        vllm.SamplingParams(seed=i, extra_args=args, **settings) for i, args in enumerate(asked)
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [answer.outputs[0] for answer in engine.generate(inputs, params, use_tqdm=False)]


def is_v2(engine):
    """Whether the engine has vLLM's V2 model runner."""
    return bool(getattr(engine.llm_engine.vllm_config, "use_v2_model_runner", False))


def tokens(completions):
    return [list(completion.token_ids) for completion in completions]


def spoken(completion):
    """Tokens without EOS."""
    return sum(token != EOS for token in completion.token_ids)


def test_thinking_is_part_of_the_text(vllm, plain, prompts, tokenizer):
    """The tags are tokens like any others: no special ones, which an engine would leave out."""
    answers = run(vllm, plain, prompts, None, temperature=0.0, max_tokens=500)
    for answer in answers:
        assert re.fullmatch("<think>.*</think>the answer is [0-9]+", answer.text), answer.text
        assert answer.text == tokenizer.decode(answer.token_ids, skip_special_tokens=True)


def test_off_and_beta_zero_sample_as_a_server_without_the_processor(vllm, plain, guided, prompts):
    reference = tokens(run(vllm, plain, prompts, None))
    neutral = {"lenvm_mode": "tilt", "lenvm_beta": 0.0}
    for args in (None, {"lenvm_mode": "off"}, neutral):
        assert tokens(run(vllm, guided, prompts, args)) == reference
    mixed = [[None, TILT, neutral][i % 3] for i in range(len(prompts))]
    answers = tokens(run(vllm, guided, prompts, mixed))
    untouched = [i for i in range(len(prompts)) if i % 3 != 1]
    assert [answers[i] for i in untouched] == [reference[i] for i in untouched]
    assert [answers[i] for i in range(1, 12, 3)] != [reference[i] for i in range(1, 12, 3)]


def test_lengths_obey(vllm, guided, prompts):
    most = {"lenvm_mode": "at_most", "lenvm_target": 30}
    assert all(spoken(c) <= 30 for c in run(vllm, guided, prompts, most))
    least = {"lenvm_mode": "at_least", "lenvm_target": 40}
    assert all(spoken(c) >= 40 for c in run(vllm, guided, prompts, least))
    equal = {"lenvm_mode": "equal", "lenvm_target": 25, "lenvm_force_eos": True}
    assert all(spoken(c) <= 25 for c in run(vllm, guided, prompts, equal))


@pytest.fixture(scope="module")
def tilted(lenvm):
    """(history, temperature) -> candidates [12] and log p' [12] of TILT, computed without vLLM;
    `change` is applied to the policy's logits [V] first."""
    policy = AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32).eval()
    model = LengthValueModel.from_pretrained(lenvm).eval()

    @torch.inference_mode()
    def compute(history, temperature, change=lambda logits: logits):
        history = torch.tensor(history)
        top = (change(policy(history[None]).logits[0, -1]) / temperature).topk(12)
        whole = torch.cat([history.expand(12, -1), top.indices[:, None]], dim=1)
        u = torch.sigmoid(model.length_logits(whole)[:, -1])
        u = u.masked_fill(top.indices == EOS, 0.0)
        return top.indices, torch.log_softmax(top.values + TILT["lenvm_beta"] * u, -1)

    return compute


def test_the_logprob_of_a_sampled_token_is_that_of_the_guided_distribution(
    vllm, guided, prompts, tilted
):
    sampling = {"temperature": 0.8, "logprobs": 0, "max_tokens": 24}
    answers = run(vllm, guided, prompts[:3], TILT, **sampling)
    for prompt, answer in zip(prompts, answers, strict=False):
        for step, token in enumerate(answer.token_ids):
            ids, log_probs = tilted([*prompt, *answer.token_ids[:step]], 0.8)
            expected = log_probs[ids == token].item()
            assert answer.logprobs[step][token].logprob == pytest.approx(expected, abs=2e-4)


def penalised(scores, ids, prompt, output, *, repetition_penalty, presence_penalty):
    """What vLLM makes of the scores of tokens `ids`."""
    seen = torch.isin(ids, torch.tensor([*prompt, *output]))
    repeated = torch.where(scores > 0, scores / repetition_penalty, scores * repetition_penalty)
    said = torch.isin(ids, torch.tensor(output, dtype=torch.long))
    return torch.where(seen, repeated, scores) - presence_penalty * said


def test_penalties_come_where_the_runner_has_them(vllm, guided, prompts, tilted):
    """V1: on the guided distribution, among its candidates. V2: on the policy's, before it."""
    temperature, penalties = 0.8, {"repetition_penalty": 1.5, "presence_penalty": 0.7}
    sampling = {"temperature": temperature, "logprobs": 0, "max_tokens": 24}
    answers = run(vllm, guided, prompts, TILT, **sampling, **penalties)
    assert tokens(answers) != tokens(run(vllm, guided, prompts, TILT, **sampling))
    for prompt, answer in zip(prompts, answers, strict=True):
        for step, token in enumerate(answer.token_ids):
            output = list(answer.token_ids[:step])
            given = {"prompt": prompt, "output": output, **penalties}
            if is_v2(guided):
                ids, log_probs = tilted(
                    [*prompt, *output],
                    temperature,
                    lambda z, given=given: penalised(z, torch.arange(len(z)), **given),
                )
            else:
                ids, log_probs = tilted([*prompt, *output], temperature)
                written = penalised(temperature * log_probs, ids, **given)
                log_probs = torch.log_softmax(written / temperature, -1)
            expected = log_probs[ids == token]
            assert len(expected) == 1, "no token but a candidate"
            assert answer.logprobs[step][token].logprob == pytest.approx(expected.item(), abs=5e-4)


def test_penalties_move_no_bound(vllm, guided, prompts):
    penalties = {"repetition_penalty": 1.8, "frequency_penalty": 1.0}
    most = {"lenvm_mode": "at_most", "lenvm_target": 15}
    assert all(spoken(c) <= 15 for c in run(vllm, guided, prompts, most, **penalties))
    least = {"lenvm_mode": "at_least", "lenvm_target": 30}
    assert all(spoken(c) >= 30 for c in run(vllm, guided, prompts, least, **penalties))


def test_greedy_requests_are_guided(vllm, guided, prompts):
    unguided = tokens(run(vllm, guided, prompts, None, temperature=0.0))
    both = [{"lenvm_mode": "tilt", "lenvm_beta": beta} for beta in (40.0, -40.0)]
    longer, shorter = (tokens(run(vllm, guided, prompts, t, temperature=0.0)) for t in both)
    assert longer != unguided != shorter != longer


def test_several_completions_of_one_prompt_are_guided(vllm, guided, prompts):
    params = vllm.SamplingParams(
        n=4,
        temperature=1.0,
        max_tokens=64,
        extra_args={"lenvm_mode": "at_most", "lenvm_target": 20},
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts[:4]]
    answers = guided.generate(inputs, params, use_tqdm=False)
    assert all(spoken(c) <= 20 for answer in answers for c in answer.outputs)


def test_a_grammar_and_guidance_hold_together(vllm, guided, prompts, tokenizer):
    from vllm.sampling_params import StructuredOutputsParams

    params = vllm.SamplingParams(
        temperature=1.0,
        max_tokens=12,
        allowed_token_ids=[2, 3, 4, EOS],
        extra_args={"lenvm_mode": "equal", "lenvm_target": 6},
    )
    [answer] = guided.generate([{"prompt_token_ids": prompts[0]}], params, use_tqdm=False)
    assert set(answer.outputs[0].token_ids) <= {2, 3, 4, EOS}
    choice = ["the answer is 5", "so 6"]
    params = vllm.SamplingParams(
        temperature=1.0,
        max_tokens=8,
        structured_outputs=StructuredOutputsParams(choice=choice),
        extra_args=TILT,
    )
    [answer] = guided.generate([{"prompt_token_ids": prompts[0]}], params, use_tqdm=False)
    assert answer.outputs[0].text in choice


def structured(vllm, guided, prompts, regex, asked, seed=0):
    """Completions under a grammar and guidance."""
    from vllm.sampling_params import StructuredOutputsParams

    params = vllm.SamplingParams(
        temperature=1.0,
        seed=seed,
        max_tokens=24,
        structured_outputs=StructuredOutputsParams(regex=regex),
        extra_args=asked,
    )
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    return [answer.outputs[0] for answer in guided.generate(inputs, params, use_tqdm=False)]


AT_MOST_3 = {"lenvm_mode": "at_most", "lenvm_target": 3}


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("mode", ["at_most", "equal"])
def test_a_grammar_that_forbids_the_end_wins_over_a_forced_end(vllm, guided, prompts, mode, forced):
    """Ten digits are demanded: there are ten, whatever the target, and then the end."""
    asked = {"lenvm_mode": mode, "lenvm_target": 3, "lenvm_force_eos": forced}
    for answer in structured(vllm, guided, prompts[:4], "[1-9]{10}", asked):
        assert re.fullmatch("[1-9]{10}", answer.text), answer.text
        assert spoken(answer) == 10 and answer.finish_reason == "stop"


def test_where_the_grammar_allows_the_end_it_is_forced(vllm, guided, prompts):
    """At the target, and where the grammar comes to it later, at its first possible end."""
    asked = {**AT_MOST_3, "lenvm_force_eos": True}
    for answer in structured(vllm, guided, prompts[:4], "[1-9]{1,10}", asked):
        assert re.fullmatch("[1-9]{1,3}", answer.text) and answer.finish_reason == "stop"
    for answer in structured(vllm, guided, prompts[:4], "[1-9]{6,10}", asked):
        assert re.fullmatch("[1-9]{6}", answer.text) and answer.finish_reason == "stop"


def test_a_grammar_that_demands_the_end_wins_over_at_least(vllm, guided, prompts):
    asked = {"lenvm_mode": "at_least", "lenvm_target": 9}
    for answer in structured(vllm, guided, prompts[:4], "[1-9]{2}", asked):
        assert re.fullmatch("[1-9]{2}", answer.text) and answer.finish_reason == "stop"
    for answer in structured(vllm, guided, prompts[:4], "[1-9]{2,12}", asked):
        assert re.fullmatch("[1-9]{9,12}", answer.text), answer.text


def test_malformed_requests_are_refused_and_the_engine_goes_on(vllm, guided, prompts):
    from vllm.exceptions import VLLMValidationError

    for args, sentence in (
        ({"lenvm_mode": "equal"}, "lenvm_target is missing"),
        ({"lenvm_mode": "equal", "lenvm_target": 9, "lenvm_gamma": 0.5}, "lenvm_gamma is 0.5"),
        ({"lenvm_beta": 1.0}, "lenvm_mode is missing"),
    ):
        with pytest.raises((ValueError, VLLMValidationError), match=sentence):
            run(vllm, guided, prompts[:1], args)
    assert len(run(vllm, guided, prompts[:1], TILT)) == 1


def test_every_value_was_that_of_a_full_recompute_and_all_slots_came_back(
    vllm, guided, prompts, audit_file
):
    run(vllm, guided, prompts[:5], {**TILT, "lenvm_beta": 8.0, "lenvm_top_k": 20})
    # Last steps, in which the ended requests are dropped. (Runner V2 calls processors only where
    # something acts on the logits, such as a temperature.)
    run(vllm, guided, prompts[:1], None, temperature=0.7)
    figures = json.loads(audit_file.read_text())
    assert figures["values"] > 5_000
    assert figures["max_difference"] < 1e-5
    assert figures["guided_requests"] == figures["slots_in_use"] == 0
    assert os.environ["LENVM_AUDIT_FILE"] == str(audit_file)

"""Does continuous batching sample exactly what one row at a time would?"""

import math

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lenvm_rl.model import load_tokenizer
from lenvm_rl.sampling.transformers.sampler import Completion, ContinuousSampler, Request
from tests.tiny import make_tokenizer

EOS = [1, 6, 11]  # several, so that greedy paths of random models end too
SMALL = {
    "vocab_size": 24,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "eos_token_id": EOS,
    "bos_token_id": 0,
}


def small_model(kind=Qwen2ForCausalLM, config=Qwen2Config, *, seed=0, **changes):
    """A random model whose logits are spread enough for greedy paths to differ."""
    torch.manual_seed(seed)
    model = kind(config(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(8.0)
    return model


def ragged_prompts(n, *, longest=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (n,), generator=generator).tolist()
    return [torch.randint(2, 24, (k,), generator=generator).tolist() for k in lengths]


def reference_greedy(model, prompt, max_tokens):
    """transformers' own greedy decoding of one prompt, cut behind the first EOS."""
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_tokens,
        eos_token_id=EOS,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("kind", "config", "changes"),
    [
        (Qwen2ForCausalLM, Qwen2Config, {}),
        (Qwen2ForCausalLM, Qwen2Config, {"attn_implementation": "eager"}),
        (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
        (LlamaForCausalLM, LlamaConfig, {}),
    ],
)
def test_greedy_equals_transformers_generate_on_ragged_prompts_with_refills(kind, config, changes):
    model = small_model(kind, config, **changes)
    requests = [
        Request(prompt, max_tokens=5 + 7 * (i % 6), temperature=0.0)
        for i, prompt in enumerate(ragged_prompts(23))
    ]
    completions = ContinuousSampler(model, max_batch=4).generate(requests)
    for request, completion in zip(requests, completions, strict=True):
        assert completion.token_ids == reference_greedy(
            model, request.prompt_ids, request.max_tokens
        )
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] in EOS else "length")
    assert {c.finish_reason for c in completions} == {"stop", "length"}


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.0}],
)
def test_logprobs_equal_a_full_forward_pass(settings):
    model = small_model()
    requests = [
        Request(p, max_tokens=30, seed=i, **settings) for i, p in enumerate(ragged_prompts(12))
    ]
    completions = ContinuousSampler(model, max_batch=5).generate(requests)
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(request.prompt_ids) - 1 : -1]
        expected = slow_logprobs(logits, **settings)
        picked = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        torch.testing.assert_close(
            torch.tensor(completion.logprobs), picked, atol=1e-4, rtol=0, check_dtype=False
        )


def slow_logprobs(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The distribution of each row, filtered token by token."""
    rows = []
    for row in torch.softmax(logits / (temperature or 1.0), -1).double():
        order = sorted(range(len(row)), key=lambda i: -row[i])
        kept, mass = [], 0.0
        for token in order[: top_k or len(order)]:
            if mass >= top_p or row[token] < min_p * row[order[0]]:
                break
            kept.append(token)
            mass += row[token].item()
        filtered = torch.zeros_like(row)
        filtered[kept] = row[kept]
        rows.append((filtered / filtered.sum()).log().float())
    return torch.stack(rows)


def test_batch_size_and_queue_order_never_change_a_completion():
    model = small_model()
    requests = [
        Request(p, max_tokens=10 + i % 30, seed=1000 + i, temperature=0.9 + 0.02 * (i % 5))
        for i, p in enumerate(ragged_prompts(40))
    ]
    alone = [ContinuousSampler(model, max_batch=1).generate([r])[0] for r in requests]
    for batch in (1, 3, 16, 64):
        together = ContinuousSampler(model, max_batch=batch).generate(requests[::-1])[::-1]
        assert [c.token_ids for c in together] == [c.token_ids for c in alone]
        assert [c.finish_reason for c in together] == [c.finish_reason for c in alone]


def test_equal_prompts_share_their_prefill_and_still_differ_in_samples():
    model = small_model()
    prompt = ragged_prompts(1, seed=5)[0] * 2
    requests = [Request(prompt, max_tokens=12, seed=i) for i in range(20)]
    shared = ContinuousSampler(model, max_batch=6).generate(requests)
    alone = [ContinuousSampler(model, max_batch=6).generate([r])[0] for r in requests]
    assert [c.token_ids for c in shared] == [c.token_ids for c in alone]
    assert len({tuple(c.token_ids) for c in shared}) > 10


def test_tokens_follow_the_models_distribution():
    model = small_model()
    prompt, n = [3, 7, 5], 4000
    first = [
        c.token_ids[0]
        for c in ContinuousSampler(model, max_batch=256, seed=0).generate(
            [Request(prompt, max_tokens=1)] * n
        )
    ]
    with torch.no_grad():
        probabilities = torch.softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
    for token, p in enumerate(probabilities.tolist()):
        assert abs(first.count(token) / n - p) < 4.5 * math.sqrt(p * (1 - p) / n) + 1e-9


def test_seeded_sampler_repeats_and_unseeded_requests_differ():
    model = small_model()
    requests = [Request([4, 5], max_tokens=20)] * 8

    def run(seed):
        return [c.token_ids for c in ContinuousSampler(model, seed=seed).generate(requests)]

    assert run(3) == run(3)
    assert run(3) != run(4)
    assert len({tuple(t) for t in run(3)}) > 4


def test_longer_budget_only_extends_a_completion():
    model = small_model()
    short, long = (
        ContinuousSampler(model).generate([Request([9, 2], max_tokens=m, seed=11)])[0]
        for m in (6, 40)
    )
    assert long.token_ids[: len(short.token_ids)] == short.token_ids


def test_submit_step_and_abort():
    model = small_model()
    sampler = ContinuousSampler(model, eos_token_ids=1, max_batch=2)
    prompts = ragged_prompts(6, seed=2)
    requests = {f"r{i}": Request(p, max_tokens=9, seed=i) for i, p in enumerate(prompts)}
    for name, request in requests.items():
        sampler.submit(request, name)
    sampler.step()
    assert sampler.abort("r0") and sampler.abort("r5")  # one runs, one waits
    assert not sampler.abort("r0")
    done = {}
    while sampler.pending:
        done.update(sampler.step())
    assert set(done) == {"r1", "r2", "r3", "r4"}
    for name, completion in done.items():
        assert completion == approx_completion(
            ContinuousSampler(model, eos_token_ids=1).generate([requests[name]])[0]
        )


def test_any_running_row_can_be_aborted_without_touching_the_others():
    model = small_model()
    requests = [Request(p, max_tokens=20, seed=i) for i, p in enumerate(ragged_prompts(5))]
    whole = ContinuousSampler(model, eos_token_ids=1).generate(requests)
    for victim in range(5):
        sampler = ContinuousSampler(model, eos_token_ids=1)
        for i, request in enumerate(requests):
            sampler.submit(request, i)
        done = dict(sampler.step())
        aborted = sampler.abort(victim)
        assert aborted == (victim not in done)
        while sampler.pending:
            done.update(sampler.step())
        assert set(done) == set(range(5)) - ({victim} if aborted else set())
        assert all(done[i].token_ids == whole[i].token_ids for i in done)


def approx_completion(completion):
    return Completion(
        completion.token_ids, completion.finish_reason, pytest.approx(completion.logprobs, abs=1e-5)
    )


def test_the_context_length_cuts_and_marks_the_completion():
    model = small_model(max_position_embeddings=16)
    completion = ContinuousSampler(model, eos_token_ids=[23]).generate(
        [Request([5] * 10, max_tokens=50, temperature=0.0)]
    )[0]
    assert len(completion.token_ids) == 6
    assert completion.finish_reason == "length"


def test_bad_requests_name_value_and_remedy():
    sampler = ContinuousSampler(small_model())
    with pytest.raises(ValueError, match="prompt of 96 tokens .* context of 96 .* shorten"):
        sampler.generate([Request([2] * 96, max_tokens=5)])
    with pytest.raises(ValueError, match="token id 24 .* vocabulary of 24.*another tokenizer"):
        sampler.generate([Request([2, 24], max_tokens=5)])
    for bad in (
        {"prompt_ids": []},
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -2},
        {"min_p": 1.5},
        {"seed": -1},
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            Request(**{"prompt_ids": [2], "max_tokens": 5, **bad})


def test_models_that_cannot_be_batched_are_refused():
    with pytest.raises(ValueError, match="sliding_window=8"):
        ContinuousSampler(
            small_model(use_sliding_window=True, sliding_window=8, max_window_layers=0)
        )
    with pytest.raises(ValueError, match="no EOS token is known"):
        ContinuousSampler(small_model(eos_token_id=None))


def test_a_model_without_a_tokenizer_ends_as_its_configuration_says(tmp_path):
    """transformers makes up a tokenizer of one special token for it: that one is no end."""
    small_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        load_tokenizer(tmp_path)
    assert ContinuousSampler.from_pretrained(str(tmp_path)).eos_token_ids == set(EOS)
    make_tokenizer().save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).eos_token_id == 1

"""The guidance benchmark, in tiny: its scorers, its policy loop, its arithmetic, a run."""

import json

import pytest
import torch

from lenvm_rl.guidance import History
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from scripts.bench.guidance import summarize, within_bars
from scripts.bench.harness import main
from scripts.bench.step_cost.loop import Loop, Policy, Timed, cut_prompts
from scripts.bench.step_cost.pairs import SCORERS, SHAPES, Pair
from tests.tiny import VOCAB, make_policy


def tiny() -> Pair:
    policy = make_policy("llama")
    config = make_policy("qwen2").config
    return Pair(policy, LengthValueModel(LengthValueConfig(text_config=config, gamma=0.97)).eval())


def test_both_scorers_agree_and_only_one_runs_the_trunk_twice():
    pair = tiny()
    scorers = [SCORERS[name](pair, 2, 60, 4) for name in ("exact", "two_forward")]
    histories = [History([5, 6, 7], []), History([9] * 30, [])]
    slots = [[scorer.open(history) for history in histories] for scorer in scorers]
    for step in range(4):
        candidates = torch.rand(2, VOCAB).argsort(1)[:, :4]
        mask = torch.ones(2, 4, dtype=torch.bool)
        exact, two = (
            scorer.score(held, histories, candidates, mask)
            for scorer, held in zip(scorers, slots, strict=True)
        )
        torch.testing.assert_close(exact, two, atol=1e-5, rtol=0)
        for row, history in enumerate(histories):
            history.output.append(int(candidates[row, step]))
    assert [scorer.stats.passes for scorer in scorers] == [4 + 1, 4 * 2]
    assert [scorer.stats.committed for scorer in scorers] == [3 * 2, 0]


def test_the_policy_decodes_as_the_model_does():
    pair = tiny()
    prompts = cut_prompts(pair, 3, 20)
    assert [len(prompt) for prompt in prompts] == [20, 19, 18]
    policy = Policy(pair, prompts, room=5)
    histories = [list(prompt) for prompt in prompts]
    with torch.inference_mode():
        for _ in range(4):
            logits, hidden = policy.forward()
            for row, history in enumerate(histories):
                tokens = torch.tensor([history])
                full = pair.policy(tokens).logits[0, -1]
                torch.testing.assert_close(logits[row], full, atol=1e-5, rtol=1e-5)
                state = pair.policy.base_model(tokens).last_hidden_state[0, -1]
                torch.testing.assert_close(hidden[row], state, atol=1e-5, rtol=1e-5)
            for history, token in zip(histories, policy.sample(logits), strict=True):
                history.append(token)


def test_ratios_are_those_of_rounds():
    pair = tiny()
    loops = {}
    for name in ("policy", "exact", "two_forward"):
        loops[name] = Loop(Policy(pair, [[3, 4]], 4), None, 2)
        loops[name].steps = {"policy": [1, 1, 9, 9, 1, 1], "exact": [2, 2, 9, 9, 2, 2]}.get(
            name, [4, 4, 9, 9, 5, 5]
        )
        if name != "policy":
            loops[name].scorer = Timed(SCORERS[name](pair, 1, 10, 2), pair.policy.device)
            loops[name].scorer.wall = loops[name].scorer.processor = loops[name].steps
    figures = summarize(loops, rounds=3)
    assert figures["policy"] == {"step_ms": 1000.0}
    assert figures["exact"]["scorer_ms"] == 2000.0
    assert figures["exact"]["step_to_policy"] == 2.0
    assert figures["exact_to_two_forward"]["scorer_ms"] == 0.5  # of 0.5, 1 and 0.4


def test_a_run_prints_and_writes_one_json_object(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(SHAPES, "demo", tiny)
    threads = torch.get_num_threads()
    try:
        words = "--shapes demo --requests 2 --candidates 3 4 --context 16 --rounds 2 --steps 1"
        more = ["--profile", "--json", str(tmp_path / "out.json")]
        assert main(["guidance", *words.split(), *more]) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr()
    line = printed.out.strip().splitlines()[-1]
    found = json.loads(line)
    assert (tmp_path / "out.json").read_text() == line + "\n"
    assert [case["candidates"] for case in found["shapes"]["demo"]] == [3, 4]
    for case in found["shapes"]["demo"]:
        assert case["figures"]["exact"]["step_ms"] > case["figures"]["exact"]["scorer_ms"] > 0
        assert case["figures"]["policy_head"]["scorer_ms"] > 0
    assert "two_forward, 2 requests, K = 4" in printed.err and "aten::mm" in printed.err
    bars = found["within_bar"]
    assert set(bars) == {"exact_to_two_forward", "q_head_to_policy", "policy_head_to_policy"}
    assert all(0 <= within <= 2 and total == 2 for within, total in bars.values())


def test_bars_are_counted():
    cases = [
        {"figures": {"q_head": {"step_to_policy": 1.05}, "exact": {"step_to_policy": 9.0}}},
        {"figures": {"q_head": {"step_to_policy": 1.06}}},
        {"figures": {"exact_to_two_forward": {"scorer_ms": 0.6}}},
    ]
    assert within_bars(cases) == {"exact_to_two_forward": [1, 1], "q_head_to_policy": [1, 2]}


def test_the_policy_head_reads_the_states_of_the_policy_loop():
    """Values of random heads on the policy's states are those of the LenVM on the same trunk."""
    pair = tiny()
    scorer = SCORERS["policy_head"](pair, 2, 60, 4)
    assert scorer.config.hidden_size == pair.policy.config.hidden_size
    policy = Policy(pair, cut_prompts(pair, 2, 12), room=4)
    with torch.inference_mode():
        _, hidden = policy.forward()
        ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
        z = scorer.score([1, 2], [], ids, torch.ones(2, 3, dtype=torch.bool), hidden=hidden)
        head, embed = scorer._candidates._head, pair.policy.get_input_embeddings()
        for row, prompt in enumerate(policy.prompts):
            state = pair.policy.base_model(torch.tensor([prompt])).last_hidden_state[:, -1]
            expected = head.combine(head.states(state), head.tokens(embed(ids[row])))
            torch.testing.assert_close(z[row], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("requests", [1, 4])
def test_prompts_fit_the_context(requests):
    prompts = cut_prompts(tiny(), requests, 32)
    assert len(prompts) == requests and len(prompts[0]) == 32
    assert all(prompts[0][: len(prompt)] == prompt for prompt in prompts)

"""How many passes does a step of the exact scorer take on real text, the accelerator's way?

    pytest tests/guidance/test_passes.py -m slow -s        prints them as one JSON object

The shipped policy and its LenVM, on a CPU that keeps every row in its step and pads it, as CUDA
does. A step is one pass, which CUDA replays as a graph; any other pass after the prompts were read
would be launched kernel by kernel. A row that is looked at now and then (`lazy`) reads what it
missed in a pass of its own, so bounds look at every step here.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from lenvm_rl.demo import lenvm_path, policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.guidance import GuidanceSettings, Guide
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.model import LengthValueModel, load_tokenizer
from lenvm_rl.sampling.encoding import encode_prompt
from lenvm_rl.sampling.transformers.engine import GuidanceHook
from lenvm_rl.sampling.transformers.sampler import ContinuousSampler, Request

pytestmark = pytest.mark.slow
MODES = [
    GuidanceSettings(mode="tilt", beta=-4.0),
    GuidanceSettings(mode="at_most", target=60, lazy=0),
    GuidanceSettings(mode="equal", target=50),
    GuidanceSettings(mode="at_least", target=80, lazy=0),
]


class Watched(ExactScorer):
    """Counts the passes of each step, and the rows that had one candidate to run."""

    def score(self, slots, histories, candidates, mask):
        before, read = self.stats.passes, self.stats.prefilled
        z = super().score(slots, histories, candidates, mask)
        self.seen.append((self.stats.passes - before, self.stats.prefilled - read))
        self.alone.append((mask.sum(1) <= 1).float().mean().item())
        return z


@pytest.fixture(scope="module")
def figures():
    found = {}
    yield found
    print("\n" + json.dumps({"passes": found}))


@pytest.mark.parametrize("requests", [1, 4, 16, 64])
def test_every_step_is_one_pass(requests, figures):
    tokenizer = load_tokenizer(policy_path())
    prompts = [encode_prompt(tokenizer, prompt) for prompt in demo_prompts(requests, seed=2)]
    policy = AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32)
    sampler = ContinuousSampler(policy, eos_token_ids=[tokenizer.eos_token_id], max_batch=requests)
    scorer = Watched(
        LengthValueModel.from_pretrained(lenvm_path()),
        slots=requests,
        max_length=256,
        max_candidates=20,
        fixed_shapes=True,
    )
    scorer.seen, scorer.alone = [], []
    guide = Guide(scorer, eos_token_ids=sampler.eos_token_ids, max_candidates=20, drops_rows=False)
    sampler.hook = GuidanceHook(guide, {i: MODES[i % 4] for i in range(requests)})
    sampler.generate([Request(ids, max_tokens=40, seed=i) for i, ids in enumerate(prompts)])
    later = scorer.seen[1:]  # the first one reads the prompts
    extra = sum(passes > 1 for passes, _ in later)
    figures[f"R={requests}"] = {
        "steps": len(later),
        "steps_with_an_extra_pass": extra,
        "rows_with_one_candidate": round(sum(scorer.alone[1:]) / len(later), 3),
    }
    assert len(later) >= 20 and extra == 0
    assert all(tokens == 0 for _, tokens in later)

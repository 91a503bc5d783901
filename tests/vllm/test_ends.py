"""A response ends where its request says: lengths in a real engine, with the shipped policy.

pytest tests/vllm/test_ends.py -m slow -s        prints the lengths as one JSON object
"""

import json
import shutil

import pytest

from lenvm_rl.demo import lenvm_path, policy_path
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.sampling.encoding import encode_prompt
from tests.vllm.conftest import ENGINE

pytestmark = pytest.mark.slow
EOS, PAD, STOP, EQUALS = 1, 0, 6, 10  # of the shipped policy: </think> and =


def at_least(n):
    return {"lenvm_mode": "at_least", "lenvm_target": n}


def equal(n):
    return {"lenvm_mode": "equal", "lenvm_target": n}


@pytest.fixture(scope="module")
def figures():
    """What is printed at the end."""
    found = {}
    yield found
    print("\n" + json.dumps({"ends": found}))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """The shipped policy, as fine-tuned models often come: its configurations name another EOS than
    its tokenizer, which is the one that it writes."""
    directory = tmp_path_factory.mktemp("foreign") / "policy"
    shutil.copytree(policy_path(), directory)
    for name in ("config.json", "generation_config.json"):
        file = directory / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": PAD}))
    return directory


@pytest.fixture(scope="module")
def engines(vllm, foreign):
    """name -> a guided engine, started when it is first asked for."""
    started = {}
    settings = {"shipped": {}, "foreign": {}, "foreign_neutral": {"generation_config": "vllm"}}

    def engine(name):
        if name not in started:
            started[name] = vllm.LLM(
                str(policy_path() if name == "shipped" else foreign),
                logits_processors=["lenvm_rl.vllm:LengthGuidance"],
                additional_config={"lenvm": {"checkpoint": str(lenvm_path())}},
                **ENGINE,
                **settings[name],
            )
        return started[name]

    return engine


def complete(vllm, engine, tokenizer, asked, *, max_tokens=90, **settings):
    """Token ids of 16 completions."""
    prompts = [encode_prompt(tokenizer, prompt) for prompt in demo_prompts(16, seed=5)]
    params = [
        vllm.SamplingParams(
            seed=i, temperature=1.0, max_tokens=max_tokens, extra_args=asked, **settings
        )
        for i in range(len(prompts))
    ]
    inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
    answers = engine.generate(inputs, params, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def spoken(completions, *ends):
    """Tokens before the end of each."""
    return [len(ids) - (ids[-1] in ends) for ids in completions]


@pytest.mark.parametrize(
    ("case", "engine", "settings"),
    [
        ("stop_token_ids", "shipped", {"stop_token_ids": [EQUALS]}),
        ("stop", "shipped", {"stop": ["="]}),
        ("foreign_eos", "foreign", {}),
        ("foreign_eos_neutral", "foreign_neutral", {}),
    ],
)
def test_at_least_is_a_bound(vllm, engines, tokenizer, figures, case, engine, settings):
    completions = complete(vllm, engines(engine), tokenizer, at_least(60), **settings)
    lengths = spoken(completions, EOS, PAD, EQUALS)
    figures[f"at_least_60.{case}.min"] = min(lengths)
    assert min(lengths) >= 60


def test_equal_is_met_by_a_stop_token(vllm, engines, tokenizer, figures):
    settings = {"stop_token_ids": [STOP]}
    lengths = spoken(
        complete(vllm, engines("shipped"), tokenizer, equal(40), **settings), EOS, STOP
    )
    figures["equal_40.stop_token_ids.mean"] = round(sum(lengths) / len(lengths), 3)
    figures["equal_40.stop_token_ids.range"] = [min(lengths), max(lengths)]
    assert abs(sum(lengths) / len(lengths) - 40) <= 1


def test_at_most_ends_by_an_end_of_this_engine(vllm, engines, tokenizer, figures):
    """What is forced at the target must be a token that stops."""
    most = {"lenvm_mode": "at_most", "lenvm_target": 20}
    for name in ("foreign", "foreign_neutral"):
        lengths = spoken(complete(vllm, engines(name), tokenizer, most), EOS, PAD)
        figures[f"at_most_20.{name}.max"] = max(lengths)
        assert max(lengths) <= 20


def test_an_ignored_end_is_a_token_like_any_other(vllm, engines, tokenizer, figures):
    """A tilt to the short side would take EOS at every step, as if nothing were left after it."""
    shorter = {"lenvm_mode": "tilt", "lenvm_beta": -10.0}
    share = {}
    for name, asked in (("unguided", None), ("guided", shorter)):
        completions = complete(
            vllm, engines("shipped"), tokenizer, asked, max_tokens=60, ignore_eos=True
        )
        tokens = [token for ids in completions for token in ids]
        assert len(tokens) == 16 * 60
        share[name] = sum(token == EOS for token in tokens) / len(tokens)
        figures[f"ignore_eos.{name}.eos_share"] = round(share[name], 4)
    assert share["guided"] < share["unguided"] + 0.1


def test_what_hides_its_end_is_refused(vllm, engines, tokenizer):
    from vllm.exceptions import VLLMValidationError

    with pytest.raises((ValueError, VLLMValidationError), match="use stop_token_ids"):
        complete(vllm, engines("shipped"), tokenizer, equal(40), stop=["."])

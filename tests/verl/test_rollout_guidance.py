"""Is every training rollout guided as asked, and is training on wrong log-probabilities refused?"""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from verl.experimental.agent_loop import SingleTurnAgentLoop
from verl.experimental.agent_loop.agent_loop import _agent_loop_registry

from lenvm_rl.demo import policy_path
from lenvm_rl.verl.data_checks import check_column
from lenvm_rl.verl.rl.agent_loop import GuidedAgentLoop
from lenvm_rl.verl.rl.policy_settings import (
    PolicyLengthSettings,
    check_against_verl,
    read_policy_settings,
)
from lenvm_rl.verl.rl.rollout_guidance import AGENT_LOOP, PROCESSOR, RolloutGuidance

ROOT = Path(__file__).parents[2]
GIVEN = {"checkpoint": "lenvm", "scale": 0.1}


@pytest.fixture(scope="module")
def composed():
    folder = str(ROOT / "recipes" / "grpo_length")
    with initialize_config_dir(config_dir=folder, version_base=None):
        return compose(config_name="demo-guided", overrides=["lenvm.checkpoint=lenvm"])


@pytest.fixture
def config(composed):
    return composed.copy()


def guidance(**block):
    return RolloutGuidance.of(block, "lenvm")


def test_no_block_is_no_guidance():
    assert RolloutGuidance.of(None, "lenvm") is None
    assert PolicyLengthSettings(**GIVEN).guidance() is None


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"mode": "at_mosst", "target": 9}, "unknown lenvm_mode 'at_mosst': use one of"),
        ({"mode": "tilt", "target": 9}, "lenvm_beta is missing"),
        ({"mode": "tilt", "column": "budget"}, "lenvm_beta is missing"),
        ({"mode": "equal"}, "lenvm_target is missing"),
        ({"mode": "equal", "target": 9, "column": "budget"}, "Keep one of them"),
        ({"mode": "equal", "traget": 9}, "unknown argument lenvm_traget"),
        ({"mode": "tilt", "beta": float("nan")}, "lenvm_beta must be finite"),
        ({"target": 9}, "lenvm_mode is missing"),
        ({"mode": "off"}, "guides nothing: give a mode, or remove it"),
        ({}, "guides nothing"),
    ],
)
def test_a_block_that_says_nothing_sensible_is_refused(block, message):
    with pytest.raises(ValueError, match=message):
        PolicyLengthSettings(**GIVEN, rollout_guidance=block)


def test_guidance_without_a_lenvm_is_refused():
    with pytest.raises(ValueError, match="no LenVM to guide with"):
        PolicyLengthSettings(use="none", rollout_guidance={"mode": "equal", "target": 9})
    named = {"mode": "equal", "target": 9, "checkpoint": "another"}
    assert PolicyLengthSettings(use="none", rollout_guidance=named).guidance().checkpoint


def test_requests_carry_the_mode_and_the_prompts_own_target():
    fixed = guidance(mode="tilt", beta=-6.0, top_k=12)
    assert fixed.extra_args({}) == {"lenvm_mode": "tilt", "lenvm_beta": -6.0, "lenvm_top_k": 12}
    own = guidance(mode="at_most", column="budget")
    assert own.extra_args({"budget": 40}) == {"lenvm_mode": "at_most", "lenvm_target": 40}
    assert own.extra_args({"extra_info": {"budget": 24}})["lenvm_target"] == 24
    with pytest.raises(ValueError, match="column=budget: a prompt has no target there"):
        own.extra_args({"extra_info": None})


def test_data_without_targets_is_refused_before_the_run():
    class Frame(dict):
        column_names = ["budget"]

    good = SimpleNamespace(dataframe=Frame(budget=[8, 16]))
    check_column((good,), "lenvm.rollout_guidance.column", "budget")
    check_column((good,), "lenvm.rollout_guidance.column", None)
    bad = SimpleNamespace(dataframe=Frame(budget=[8, None]))
    with pytest.raises(ValueError, match="lenvm.rollout_guidance.column=budget: 1 of 2 prompts"):
        check_column((good, bad), "lenvm.rollout_guidance.column", "budget")
    check_column((good,), "lenvm.rollout_guidance.column", "budget", highest=16)
    with pytest.raises(ValueError, match="asks for 16 tokens, more than the 12 of data.max_resp"):
        check_column((good,), "lenvm.rollout_guidance.column", "budget", highest=12)


def test_responses_must_have_room_for_at_least_n(config):
    def given(mode, **block):
        with open_dict(config):
            config.lenvm.rollout_guidance = {"mode": mode, **block}
        return read_policy_settings(config)

    assert config.data.max_response_length == 512
    check_against_verl(config, given("at_least", target=512))
    check_against_verl(config, given("at_most", target=600))
    check_against_verl(config, given("at_least", column="budget"))
    assert given("at_least", column="budget").guidance().highest(config) == 512
    with pytest.raises(ValueError, match="target=513 at least, but data.max_response_length=512"):
        check_against_verl(config, given("at_least", target=513))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("actor_rollout_ref.rollout.name", "transformers", "processor is vLLM's"),
        ("actor_rollout_ref.rollout.calculate_log_probs", False, "come without the log-prob"),
        ("algorithm.rollout_correction.bypass_mode", False, "recomputed without guidance"),
        ("actor_rollout_ref.rollout.logprobs_mode", "raw_logprobs", "from before guidance"),
        ("actor_rollout_ref.rollout.multi_turn.enable", True, "a target is for one response"),
    ],
)
def test_what_would_train_on_the_wrong_distribution_is_refused(config, key, value, message):
    check_against_verl(config, read_policy_settings(config))
    with open_dict(config):
        OmegaConf.update(config, key, value)
    with pytest.raises(ValueError, match=message):
        check_against_verl(config, read_policy_settings(config))


def test_verls_server_is_told_the_class_path_and_the_checkpoint(config):
    read_policy_settings(config).guidance().into(config)
    engine = config.actor_rollout_ref.rollout.engine_kwargs.vllm
    assert engine.logits_processors == PROCESSOR == "lenvm_rl.vllm:LengthGuidance"
    assert json.loads(engine.additional_config) == {"lenvm": {"checkpoint": "lenvm"}}
    with pytest.raises(ValueError, match="what they do to guided log-probabilities is unknown"):
        read_policy_settings(config).guidance().into(config)


def test_vllm_reads_what_verls_server_hands_it(config):
    """verl's command line of the engine, through vLLM's own parser."""
    pytest.importorskip("vllm")
    from verl.workers.rollout.vllm_rollout.utils import build_cli_args_from_config
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    own = read_policy_settings(config).guidance()
    own.into(config)
    engine = dict(config.actor_rollout_ref.rollout.engine_kwargs.vllm)
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    words = ["--model", str(policy_path()), *build_cli_args_from_config(engine)]
    args = AsyncEngineArgs.from_cli_args(parser.parse_args(words))
    assert args.logits_processors == [PROCESSOR]
    assert args.additional_config == {"lenvm": {"checkpoint": "lenvm"}}
    # verl's server makes SamplingParams of the agent loop's dictionary.
    params = SamplingParams(max_tokens=96, logprobs=0, extra_args=own.extra_args({"budget": 40}))
    assert params.extra_args == {"lenvm_mode": "at_most", "lenvm_target": 40}


def test_the_agent_loop_adds_each_prompts_target(config, monkeypatch):
    assert _agent_loop_registry[AGENT_LOOP]["_target_"].endswith("GuidedAgentLoop")
    seen = []

    async def run(self, sampling_params, **row):
        seen.append((sampling_params, row["budget"]))

    def start(self, trainer_config):
        self.config = trainer_config

    monkeypatch.setattr(SingleTurnAgentLoop, "run", run)
    monkeypatch.setattr(SingleTurnAgentLoop, "__init__", start)
    loop = GuidedAgentLoop(config)
    shared = {"temperature": 1.0, "logprobs": True}
    for budget in (24, 96):
        asyncio.run(loop.run(shared, budget=budget))
    assert [row for _, row in seen] == [24, 96]
    assert [given["extra_args"]["lenvm_target"] for given, _ in seen] == [24, 96]
    assert all(given["temperature"] == 1.0 for given, _ in seen)
    assert "extra_args" not in shared, "the dictionary is shared by the whole batch"

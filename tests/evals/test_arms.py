"""From directories to files: control and trade-off of the demo policy, both kinds of head."""

import json

import pytest
import torch

from lenvm_rl.demo import policy_path, task
from lenvm_rl.demo.prompts import demo_prompts
from lenvm_rl.evals.length_control import evaluate as length_control
from lenvm_rl.evals.tradeoff import evaluate as tradeoff
from lenvm_rl.model import LengthValueModel, describe_policy, load_tokenizer, save_checkpoint
from lenvm_rl.prompts.prompt import Prompt
from lenvm_rl.sampling.server.engine import ServerSettings
from tests.evals.toy_engine import PROMPTS, ToyEngine, source
from tests.sampling.openai_fake import serving
from tests.tiny import make_tokenizer

DEMO = demo_prompts(3, seed=5)


def make_lenvm(path, head, tokenizer=None):
    torch.manual_seed(0)
    tokenizer = tokenizer or load_tokenizer(policy_path())
    policy = describe_policy("demo", tokenizer)
    model = LengthValueModel.from_policy(
        policy_path(), gamma=0.98, head=head, frozen_trunk=head == "candidate", policy=policy
    )
    return save_checkpoint(model, tokenizer, path)


@pytest.mark.parametrize("head", ["state", "candidate"])
def test_control_and_tradeoff_of_the_demo_policy(tmp_path, head):
    lenvm = make_lenvm(tmp_path / "lenvm", head)
    settings = length_control.Settings(
        controls=("at_most",), quantiles=(0.5,), n=1, unguided_n=4, max_tokens=300
    )
    given = {"grader": task.grade, "settings": settings}
    control = length_control.run(policy_path(), DEMO, tmp_path / "control", lenvm=lenvm, **given)
    assert control.figures["at_most_guided_score"] == 100  # forced, whatever the LenVM thinks
    assert control.figures["unguided_logprob"] > -1
    written = json.loads((tmp_path / "control" / "length_control.json").read_text())
    assert written["prompts"] == 3 and written["headline"]
    assert (tmp_path / "control" / "length_control.png").stat().st_size > 0
    files = tmp_path / "control" / "rollouts"
    again = length_control.run(policy_path(), DEMO, tmp_path / "again", rollouts=files, **given)
    assert again.to_dict() == control.to_dict(), "the files hold all that is needed"
    compared = tradeoff.run(
        policy_path(),
        DEMO,
        tmp_path / "tradeoff",
        lenvm=lenvm,
        grader=task.grade,
        settings=tradeoff.Settings(betas=(-5.0,), n=2, max_tokens=300),
    )
    assert [row["beta"] for row in compared.tables["guided"]] == [-5, 0]
    assert (tmp_path / "tradeoff" / "tradeoff.png").stat().st_size > 0


def test_a_lenvm_of_another_tokenizer_is_refused(tmp_path):
    lenvm = make_lenvm(tmp_path / "lenvm", "state", tokenizer=make_tokenizer())
    with pytest.raises(ValueError, match="tokenizer"):
        length_control.run(policy_path(), DEMO, tmp_path / "out", lenvm=lenvm, grader=None)


def test_a_value_model_a_server_or_files_are_needed(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to guide by"):
        length_control.run(policy_path(), DEMO, tmp_path, grader=None)
    with pytest.raises(ValueError, match="no server"):
        length_control.run(
            policy_path(),
            DEMO,
            tmp_path,
            grader=None,
            connection=ServerSettings(server=("http://127.0.0.1:9",), retries=0, patience=0.0),
        )


def test_length_control_and_the_tradeoff_by_a_server(tiny_policy, tmp_path):
    """Every answer has one token; guidance, budgets and words reach the server."""
    asked = [Prompt(prompt_id="a", messages=[{"role": "user", "content": "w3"}], ground_truth="4")]
    with serving() as server:
        given = {"connection": ServerSettings(server=(server.url,), model="tiny")}
        control = length_control.run(
            tiny_policy,
            asked,
            tmp_path / "control",
            grader=None,
            settings=length_control.Settings(controls=("at_least",), targets=(2, 5), max_tokens=9),
            **given,
        )
        guides = [body["vllm_xargs"] for body in server.bodies if "vllm_xargs" in body]
        assert [guide["lenvm_target"] for guide in guides] == [2, 5]
        server.bodies.clear()
        compared = tradeoff.run(
            tiny_policy,
            asked,
            tmp_path / "tradeoff",
            grader=lambda text, truth: True,
            settings=tradeoff.Settings(
                betas=(-5,), prompt_budgets=(7,), thinking_budgets=(3, 4), n=1
            ),
            **given,
        )
    assert control.figures["at_least_guided_failed"] == 1 and not control.figures["failed_requests"]
    assert [body.get("thinking_token_budget") for body in server.bodies] == [None] * 3 + [3, 4]
    assert [row["length"] for row in compared.tables["thinking"]] == [1, 1]
    assert (tmp_path / "tradeoff" / "tradeoff.png").stat().st_size > 0


def test_prompts_that_cannot_be_asked_end_the_run_before_anything_is_sampled(tmp_path):
    engine = ToyEngine()
    picture = Prompt(
        prompt_id="a", messages=[{"role": "user", "content": "<image> q"}], images=["data:,"]
    )
    settings = tradeoff.Settings(betas=())
    [(_, _, arm)] = settings.arms([*PROMPTS, picture])
    with pytest.raises(ValueError, match="has 1 pictures, and only text"):
        source(engine, settings).fill(arm, tmp_path)
    assert not engine.requests

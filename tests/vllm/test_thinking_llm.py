"""Budgets for the thinking inside a running vLLM, with a LenVM that counts the thinking."""

import pytest

from lenvm_rl.demo import policy_path
from lenvm_rl.model import LengthValueModel, save_checkpoint
from lenvm_rl.rollouts import ThinkTags
from lenvm_rl.rollouts.segments import described
from tests.vllm.conftest import ENGINE
from tests.vllm.test_guided_llm import run

pytestmark = pytest.mark.slow
TAGS = ThinkTags((5,), (6,))


@pytest.fixture(scope="module")
def engines(vllm, lenvm, tokenizer, tmp_path_factory):
    """segment -> an engine whose LenVM counts it."""
    made = {}

    def engine(segment):
        if segment not in made:
            model = LengthValueModel.from_pretrained(lenvm)
            model.config.segment = described(segment, TAGS)
            place = save_checkpoint(model, tokenizer, tmp_path_factory.mktemp(segment) / "lenvm")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("LENVM_CHECKPOINT", str(place))
                made[segment] = vllm.LLM(
                    str(policy_path()),
                    logits_processors=["lenvm_rl.vllm:LengthGuidance"],
                    additional_config={"lenvm": {"checkpoint": str(place)}},
                    **ENGINE,
                )
        return made[segment]

    with pytest.MonkeyPatch.context() as patch:
        yield engine, patch


def asked(vllm, engines, prompts, segment, mode, target):
    engine, patch = engines
    llm = engine(segment)
    checkpoint = llm.llm_engine.vllm_config.additional_config["lenvm"]["checkpoint"]
    patch.setenv("LENVM_CHECKPOINT", checkpoint)
    args = {"lenvm_mode": mode, "lenvm_target": target, "lenvm_segment": segment}
    return [list(c.token_ids) for c in run(vllm, llm, prompts, args, max_tokens=500)]


def test_thinking_obeys_and_the_answer_is_the_policys(vllm, engines, prompts):
    for mode, target in (("at_most", 12), ("at_least", 40)):
        answers = asked(vllm, engines, prompts, "thinking", mode, target)
        thinking = [ids.index(6) for ids in answers if ids[0] == 5]
        assert thinking and all(n <= 12 if mode == "at_most" else n >= 40 for n in thinking)
        assert all(
            ids[-1] == 1 and len(ids) > n + 2 for ids, n in zip(answers, thinking, strict=True)
        )


def test_an_answer_has_a_target_of_its_own(vllm, engines, prompts):
    free = asked(vllm, engines, prompts, "answer", "at_least", 0)
    long = asked(vllm, engines, prompts, "answer", "at_least", 15)
    assert [ids[: ids.index(6)] for ids in free] == [ids[: ids.index(6)] for ids in long]
    assert all(len(ids) - ids.index(6) - 2 >= 15 for ids in long)


def test_another_segment_than_the_lenvm_counts_is_refused(vllm, engines, prompts):
    asked(vllm, engines, prompts, "thinking", "at_most", 5)
    engine, _ = engines
    args = {"lenvm_mode": "at_most", "lenvm_target": 5}
    with pytest.raises(Exception, match="the LenVM counts the thinking"):
        run(vllm, engine("thinking"), prompts, args)

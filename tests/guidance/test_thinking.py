"""Which tokens of a response are steered where the LenVM counts its thinking, or its answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenvm_rl.guidance.guide import GuidedRow
from lenvm_rl.guidance.interface import History
from lenvm_rl.guidance.settings import GuidanceSettings
from lenvm_rl.guidance.thinking import SegmentGuidance
from lenvm_rl.rollouts import Rollout
from lenvm_rl.rollouts.segments import ThinkTags, described, segment_of

EOS, OPEN, END1, END2, WORD = 1, 5, 6, 7, 9
ONE, TWO = ThinkTags((OPEN,), (END1,)), ThinkTags((OPEN,), (END1, END2))


def steered(output, tags=ONE, segment="thinking", prompt=(3, 4), mode="at_most", target=3):
    """Per step of a response: None, or (ends, tokens left of the target, whether it must end)."""
    within = SegmentGuidance(described(segment, tags), prompt)
    settings, seen, found = GuidanceSettings(mode=mode, target=target), [], []
    for token in [*output, None]:
        row = GuidedRow(0, "k", settings, History(prompt, seen), len(prompt), ends=frozenset({EOS}))
        row = within.row(row)
        found.append(row and (sorted(row.ends), row.settings.target - row.generated, row.used_up))
        seen.append(token)
    return found


def test_thinking_is_steered_between_its_tags():
    # the policy decides itself whether it thinks; then its end is the tag; then it is free
    assert steered([OPEN, WORD, END1, WORD, EOS]) == [
        None,
        ([END1], 2, False),
        ([END1], 1, False),
        *[None] * 3,
    ]


def test_a_used_up_thinking_must_end():
    assert steered([OPEN, WORD, WORD])[-1] == ([END1], 0, True)


def test_a_response_without_thinking_is_left_alone():
    assert steered([WORD, WORD, EOS]) == [None] * 4


def test_a_template_may_open_the_thinking():
    assert steered([WORD], prompt=(3, OPEN, 8)) == [([END1], 3, False), ([END1], 2, False)]
    assert steered([WORD], prompt=(3, OPEN, END1)) == [None, None]  # of an earlier turn


def test_a_tag_of_two_tokens_is_walked_where_it_was_forced():
    forced = steered([OPEN, WORD, WORD, END1, END2, WORD], TWO)
    assert forced[3] == ([END1], 0, True)
    ends, _, used_up = forced[4]
    assert (ends, used_up) == ([END2], True)  # whatever the policy wanted to write
    assert forced[5:] == [None, None]


def test_what_only_looks_like_a_tag_is_no_end():
    free = steered([OPEN, END1, WORD, END1, END2], TWO, target=50)
    assert free == [
        None,
        ([END1], 49, False),
        None,  # perhaps a tag: the policy goes on by itself
        ([END1], 47, False),
        None,
        None,
    ]


def test_the_answer_counts_from_its_first_token():
    found = steered([OPEN, WORD, END1, END2, WORD, WORD], TWO, segment="answer")
    assert found == [None] * 4 + [([EOS], 3, False), ([EOS], 2, False), ([EOS], 1, False)]
    assert steered([WORD], segment="answer") == [None, ([EOS], 2, False)]


@given(
    st.lists(st.sampled_from([OPEN, END1, END2, WORD]), max_size=12),
    st.sampled_from([ONE, TWO]),
    st.booleans(),
)
def test_guidance_counts_what_the_rollout_file_counts(body, tags, opened):
    """A step is steered exactly where the cut rollouts have a state after the opening tag."""
    prompt = [3, OPEN] if opened else [3]
    row = Rollout(
        prompt_id="p",
        sample_id=0,
        prompt_ids=prompt,
        response_ids=[*body, EOS],
        finish_reason="stop",
    )
    part = segment_of(row, "thinking", tags)
    found = steered(body, tags, prompt=prompt, target=10**6)
    skipped = 0 if opened else len(tags.start)
    if part is None:
        assert not any(found)
        return
    end = len(part.response_ids)
    inside = {i for i, step in enumerate(found) if step}
    begun = {i for i in range(1, len(body) + 1) if len(tags.end) == 2 and body[i - 1] == END1}
    assert inside == set(range(skipped, end)) - begun
    answer = segment_of(row, "answer", tags)
    if tags.close(row.response_ids) is None:
        assert answer is None
    else:
        whole = [*part.response_ids, *tags.end[1:], *answer.response_ids]
        assert whole == row.response_ids
        assert answer.prompt_ids == [*prompt, *whole[: -len(answer.response_ids)]]


def test_tags_that_are_none():
    with pytest.raises(ValueError, match="by two tags"):
        ThinkTags((OPEN,), ())

"""A candidate is valued before it is run; training and files are those of any LenVM."""

import pytest
import torch

from lenvm_rl.model import CandidateHead, LengthValueConfig, LengthValueModel
from tests.tiny import FORWARD, VOCAB

GAMMA = 0.97


@pytest.fixture
def model(policy_dir):
    torch.manual_seed(1)
    return LengthValueModel.from_policy(policy_dir, gamma=GAMMA, head="candidate").eval()


def ids(rows=2, columns=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCAB, (rows, columns), generator=generator)


def test_value_of_a_candidate_equals_the_hand_written_formula():
    torch.manual_seed(0)
    head = CandidateHead(4, 3)
    hidden, embedded = torch.randn(1, 2, 4), torch.randn(1, 2, 4)
    inner = head.fc.weight @ hidden[0, 0] + head.fc.bias + head.token.weight @ embedded[0, 1]
    z = head.summary.weight[0] @ (inner * torch.sigmoid(inner)) + head.summary.bias[0]
    torch.testing.assert_close(head(hidden, embedded)[0, 1], z)
    start = head.fc.bias + head.token.weight @ embedded[0, 0]
    z0 = head.summary.weight[0] @ (start * torch.sigmoid(start)) + head.summary.bias[0]
    torch.testing.assert_close(head(hidden, embedded)[0, 0], z0)


def test_every_candidate_is_valued_from_the_state_before_it(model):
    sequence = ids(1, 7)
    with torch.no_grad():
        hidden = model.model(sequence[:, :-1]).last_hidden_state[:, -1]
        table = model.score.tokens(model.get_input_embeddings().weight)
        all_candidates = model.score.combine(model.score.states(hidden), table)
        for candidate in range(2, VOCAB, 7):
            sequence[0, -1] = candidate
            torch.testing.assert_close(
                model.length_logits(sequence)[0, -1],
                all_candidates[candidate],
                atol=FORWARD,
                rtol=0,
            )


def test_packed_sequences_do_not_see_each_other(model):
    first, second = ids(1, 5), ids(1, 8, seed=4)
    position_ids = torch.cat([torch.arange(5), torch.arange(8)])[None]
    hidden = torch.cat([model.model(x).last_hidden_state for x in (first, second)], dim=1)
    embedded = model.get_input_embeddings()(torch.cat([first, second], dim=1))
    packed = model.score(hidden, embedded, position_ids)
    alone = torch.cat([model.length_logits(x) for x in (first, second)], dim=1)
    torch.testing.assert_close(packed, alone, atol=FORWARD, rtol=0)


def test_it_is_saved_and_loaded_with_its_kind(model, tmp_path):
    model.config.frozen_trunk = True
    model.save_pretrained(tmp_path)
    loaded = LengthValueModel.from_pretrained(tmp_path).eval()
    assert loaded.config.head == "candidate" and loaded.config.frozen_trunk
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name
    # Other memory alignment, other order of sums: equal to round-off.
    torch.testing.assert_close(
        loaded.length_logits(ids()), model.length_logits(ids()), atol=FORWARD, rtol=0
    )


def test_an_unknown_head_is_refused(model):
    with pytest.raises(ValueError, match="head must be one of state, candidate; got 'q'"):
        LengthValueConfig(text_config=model.config.text_config, head="q")

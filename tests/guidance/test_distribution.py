"""Do scorers, guidance and distillation read a distribution as the model itself does?"""

import pytest
import torch

from lenvm_rl.core import LengthBins
from lenvm_rl.guidance import GuidanceSettings, Guide, GuidedRow, History
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.heads.distill import fresh_head
from lenvm_rl.guidance.heads.q_head import PolicyHeadScorer, QHeadScorer
from lenvm_rl.model import LengthValueConfig, LengthValueModel
from tests.guidance.test_distill import make_completions, make_distiller
from tests.tiny import VOCAB, make_policy

BINS = LengthBins.up_to(60)
GAMMA = 0.97


def make_lenvm(head="state", spread=0.2, **fields) -> LengthValueModel:
    config = make_policy("llama", initializer_range=spread).config
    torch.manual_seed(1)
    fields = {"target": "distribution", "bins": list(BINS.edges), "gamma": GAMMA, **fields}
    model = LengthValueModel(LengthValueConfig(text_config=config, head=head, **fields)).eval()
    with torch.no_grad():
        for parameter in model.score.parameters():
            parameter.mul_(3)
    return model


def scorers():
    sizes = {"slots": 4, "max_length": 100}
    return {
        "exact": lambda: ExactScorer(make_lenvm(), max_candidates=6, **sizes),
        "fixed": lambda: ExactScorer(make_lenvm(), max_candidates=6, fixed_shapes=True, **sizes),
        "candidate": lambda: QHeadScorer(make_lenvm("candidate"), **sizes),
    }


@pytest.mark.parametrize("kind", ["exact", "fixed", "candidate"])
@torch.no_grad()
def test_values_and_outputs_equal_a_full_recompute(kind):
    scorer = scorers()[kind]()
    model = scorer.model
    history = History([5, 6, 7], [])
    slot = scorer.open(history)
    for step in range(3):
        ids = torch.randint(2, VOCAB, (1, 6), generator=torch.Generator().manual_seed(step))
        mask = torch.tensor([[True, True, False, True, True, True]])
        outputs = scorer.outputs([slot], [history], ids, mask)
        rows = torch.tensor([[*history.tail(0), x] for x in ids[0].tolist()])
        expected = model.length_outputs(rows)[:, -1].masked_fill(~mask[0, :, None], 0.0)
        torch.testing.assert_close(outputs[0], expected, atol=1e-5, rtol=0)
        history.output.append(int(ids[0, step]))
        ids = ids.flip(1)
        z = scorer.score([slot], [history], ids, mask)
        rows = torch.tensor([[*history.tail(0), x] for x in ids[0].tolist()])
        expected = model.length_logits(rows)[:, -1].masked_fill(~mask[0], 0.0)
        torch.testing.assert_close(z[0], expected, atol=1e-5, rtol=0)
        history.output.append(int(ids[0, 0]))


@torch.no_grad()
def test_the_policys_states_give_distributions_too():
    model = make_lenvm("candidate", frozen_trunk=True)
    scorer, history = PolicyHeadScorer(model), History([5, 6, 7], [])
    ids = torch.tensor([[8, 9, 10]])
    hidden = model.model(torch.tensor([[5, 6, 7]])).last_hidden_state[:, -1]
    slot, everything = scorer.open(history), torch.ones(1, 3, dtype=torch.bool)
    outputs = scorer.outputs([slot], [history], ids, everything, hidden=hidden)
    rows = torch.tensor([[5, 6, 7, x] for x in ids[0].tolist()])
    torch.testing.assert_close(outputs[0], model.length_outputs(rows)[:, -1], atol=1e-5, rtol=0)
    z = scorer.score([slot], [history], ids, everything, hidden=hidden)
    torch.testing.assert_close(z, BINS.of(outputs).logit(GAMMA))


def test_guidance_tilts_by_u_at_the_gamma_of_each_request():
    model, gammas = make_lenvm(), (None, 0.8, 0.999)
    guide = Guide(
        ExactScorer(model, slots=3, max_length=60, max_candidates=8),
        eos_token_ids=[1],
        max_candidates=8,
    )
    prompt = [5, 6, 7]
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    logits[:, 1] = -50.0
    top = logits[0].topk(8).indices
    before = logits[0, top].log_softmax(-1)
    settings = [GuidanceSettings(mode="tilt", beta=-9.0, gamma=gamma) for gamma in gammas]
    guide.apply(
        logits,
        [
            GuidedRow(index=i, key=i, history=History(prompt, []), settings=x, prompt_length=3)
            for i, x in enumerate(settings)
        ],
    )
    with torch.no_grad():
        after = model.distribution(torch.tensor([[*prompt, x] for x in top.tolist()]))[:, -1]
    for row, gamma in zip(logits, gammas, strict=True):
        expected = (before - 9.0 * after.u(gamma or GAMMA)).log_softmax(-1)
        torch.testing.assert_close(row[top].log_softmax(-1), expected, atol=1e-4, rtol=1e-4)
    for asked in settings:
        asked.check_model(model.config)


def test_a_risk_bounds_the_chance_that_the_lenvm_sees():
    """And the row beside it changes nothing of it; one that is not guided keeps its bits."""
    model, prompt = make_lenvm(), [5, 6, 7]
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(0))
    logits[:, 1] = -50.0
    asked = [
        GuidanceSettings(mode="at_most", target=12, risk=0.1, top_k=8, min_p=0.0),
        GuidanceSettings(mode="tilt", beta=-3.0, top_k=8),
    ]
    for setting in asked:
        setting.check_model(model.config)
    guided = {}
    for which in ((0, 1), (0,), (1,)):
        guide = Guide(
            ExactScorer(model, slots=3, max_length=60, max_candidates=8),
            eos_token_ids=[1],
            max_candidates=8,
        )
        rows = [
            GuidedRow(i, i, asked[i], History(prompt, []), prompt_length=3, temperature=1.0)
            for i in which
        ]
        written = logits.clone()
        guide.apply(written, rows)
        for i in which:
            before = guided.setdefault(i, written[i]).softmax(-1)
            torch.testing.assert_close(written[i].softmax(-1), before, rtol=0, atol=1e-5)
        assert torch.equal(written[2], logits[2])
    top = logits[0].topk(8).indices
    with torch.no_grad():
        rows = torch.tensor([[*prompt, x] for x in top.tolist()])
        beyond = model.distribution(rows)[:, -1].longer_than(12.0).double()
    before = logits[0, top].softmax(-1).double() @ beyond
    after = guided[0][top].softmax(-1).double() @ beyond
    assert before > 0.15 and after == pytest.approx(max(0.1, float(beyond.min())), abs=1e-4)


def test_a_risk_needs_probabilities():
    setting = GuidanceSettings(mode="at_most", target=12, risk=0.1)
    one = make_lenvm(target="return", bins=None)
    with pytest.raises(ValueError, match="predicts one number per state"):
        setting.check_model(one.config)
    for wrong in ({"mode": "equal"}, {"risk": 0.0}, {"risk": 1.0}):
        with pytest.raises(ValueError, match=r"lenvm_risk must be in \(0, 1\)"):
            GuidanceSettings(**{"mode": "at_most", "target": 12, "risk": 0.1, **wrong})


def test_a_head_learns_the_whole_distribution_from_the_exact_one():
    exact = make_lenvm(spread=0.02)
    head = fresh_head(exact)
    distiller = make_distiller(exact, head, learning_rate=1e-2)
    batch = distiller.ask(make_completions(4, seed=1))
    before = distiller.loss(batch).item()
    train = make_completions(32)
    distiller.train((train[i % 32 : i % 32 + 4] for i in range(0, 4 * 30, 4)), steps=30)
    assert 0 < distiller.loss(batch).item() < 0.8 * before
    batch.exact.copy_(distiller._outputs(batch).detach())
    assert distiller.loss(batch).item() == pytest.approx(0.0, abs=1e-6)
    assert distiller.compare([batch])["rmse"] == 0.0

"""Does guidance on an accelerator ever wait for the device, or run a token twice?

Steps run here on the meta device, whose tensors have shapes and no content: whoever asks for it
(`item`, `nonzero`, a boolean index, `if tensor`) fails. `HostWaits` counts what does not ask and
waits all the same: a copy from or to the host that blocks, an index that lies on the host. The one
thing that the scorer reads, the candidates of the step before, comes by `LateRead`, which does not
wait for the step at hand.

That every sampled token has been run as a candidate, so that a step is one pass, needs content: it
is seen on a CPU that is made to take the accelerator's way.
"""

import gc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lenvm_rl.guidance import GuidanceSettings, History, lazy
from lenvm_rl.guidance.exact import scorer as exact
from lenvm_rl.guidance.exact.scorer import ExactScorer
from lenvm_rl.guidance.guide import Guide, GuidedRow
from tests.guidance.test_exact import VOCAB, make_lenvm

EOS = 1
SETTINGS = {
    "tilt": GuidanceSettings(mode="tilt", beta=-4.0, top_k=5),
    "scale": GuidanceSettings(mode="scale", scale=0.7, min_entropy=0.3),
    "equal": GuidanceSettings(mode="equal", target=6, top_p=0.9, min_p=0.02),
    "equal_soft": GuidanceSettings(mode="equal_soft", target=6),
    "at_most": GuidanceSettings(mode="at_most", target=6, lazy=0),
    "at_most_used_up": GuidanceSettings(mode="at_most", target=1),
    "at_least": GuidanceSettings(mode="at_least", target=6, lazy=0),
}


class KnownIds:
    """In `LateRead`'s place: candidates 0, 1, 2, ... of every row."""

    def __init__(self, tensor):
        assert tensor.device.type == "meta"
        self._shape = tensor.shape

    def read(self):
        return np.broadcast_to(np.arange(self._shape[1]), self._shape)


@pytest.fixture
def scorer(monkeypatch):
    monkeypatch.setattr(exact, "LateRead", KnownIds)
    return ExactScorer(
        make_lenvm().to("meta"), slots=8, max_length=100, max_candidates=8, fixed_shapes=True
    )


def decode(scorer, names, steps=3):
    """Guided steps; tokens 2 and 9 by turns, of which only the first was a candidate."""
    guidance = Guide(scorer, eos_token_ids=[EOS], max_candidates=8)
    asked = [
        GuidedRow(2 * i, name, SETTINGS[name], History([3, 4], [5]), 2, temperature=0.8 + 0.2 * i)
        for i, name in enumerate(names)
    ]
    for step in range(steps):
        logits = torch.empty(2 * len(names), VOCAB, device="meta")
        guidance.apply(logits, asked)
        for row in asked:
            row.history.output.append((2, 9)[step % 2])


COPIES = (torch.ops.aten.to, torch.ops.aten._to_copy, torch.ops.aten.copy_)


class HostWaits(TorchDispatchMode):
    """Counts operations for which the host of an accelerator would wait; meta is the device."""

    def __init__(self):
        super().__init__()
        self.seen = []
        everything = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
        self._made = {id(x): x for x in everything}  # kept, so that no id is given twice

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors_in((args, kwargs))
        result = op(*args, **kwargs)
        made = tensors_in(result)
        # What no operation has made was made of Python's numbers: `x[[0, 2]]`, `torch.tensor`.
        from_lists = any(x.is_meta and id(x) not in self._made for x in given)
        self._made |= {id(x): x for x in made}
        on_host = [x for x in given if not x.is_meta]
        crosses = on_host and any(x.is_meta for x in [*given, *made])
        # A number is handed over with the kernel's launch; a copy may be queued.
        queued = kwargs.get("non_blocking") or any(x is True for x in args[2:])
        harmless = queued if op.overloadpacket in COPIES else all(x.dim() == 0 for x in on_host)
        if from_lists or (crosses and not harmless):
            self.seen.append(op)
        return result


def tensors_in(tree):
    return [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)]


@pytest.mark.parametrize("names", [[name] for name in SETTINGS] + [list(SETTINGS)], ids="+".join)
def test_no_step_waits(scorer, names):
    with HostWaits() as waits:
        decode(scorer, names)
    assert not waits.seen
    stats = scorer.stats
    assert stats.steps == 3 and stats.committed == stats.rows // 3
    assert stats.prefilled == 4 * stats.rows // 3  # the prompts, and the token that was none


class KnownSpare:
    """In `LateRead`'s place: rows with many tokens to spare and with none, by turns."""

    def __init__(self, tensor):
        assert tensor.device.type == "meta"
        self._count = len(tensor)

    def read(self):
        return np.array([16.0, -1.0] * self._count)[: self._count]


def test_no_lazy_step_waits(scorer, monkeypatch):
    monkeypatch.setattr(lazy, "LateRead", KnownSpare)
    monkeypatch.setitem(SETTINGS, "late", GuidanceSettings(mode="at_most", target=6))
    monkeypatch.setitem(SETTINGS, "early", GuidanceSettings(mode="at_least", target=6))
    with HostWaits() as waits:
        decode(scorer, ["late", "early", "tilt"])
    assert not waits.seen
    assert scorer.stats.rows == 2 + 2 + 3  # with 16 tokens to spare a row waits for two


@pytest.mark.parametrize(
    "ask",
    [
        lambda z: z.max().item(),
        lambda z: z[z > 0],
        lambda z: bool((z > 0).any()),
        lambda z: z.nonzero(),
        lambda z: z.cpu(),
    ],
    ids=["item", "index", "if", "nonzero", "cpu"],
)
def test_one_that_asks_is_found_out(scorer, monkeypatch, ask):
    inner = scorer._score_fixed
    monkeypatch.setattr(scorer._fixed, "_score", lambda *args: (z := inner(*args), ask(z))[0])
    with pytest.raises((RuntimeError, NotImplementedError)):
        decode(scorer, ["tilt"])


@pytest.mark.parametrize(
    "wait",
    [
        lambda z: z[[0, 1]],
        lambda z: z[torch.tensor([0, 1])],
        lambda z: z + torch.tensor([1.0]).to(z.device),
        lambda z: z.index_fill(0, torch.tensor([0], device=z.device), 0.0),
        lambda z: z.copy_(torch.zeros(z.shape)),
    ],
    ids=["list", "host_index", "copy", "new_tensor", "copy_into"],
)
def test_one_that_waits_is_found_out(scorer, monkeypatch, wait):
    inner = scorer._score_fixed
    monkeypatch.setattr(scorer._fixed, "_score", lambda *args: (z := inner(*args), wait(z))[0])
    with HostWaits() as waits:
        decode(scorer, ["tilt"])
    assert waits.seen


@pytest.mark.parametrize("requests", [1, 4, 16])
def test_no_token_is_run_twice(requests):
    """Most rows of a trained policy have one candidate: that one, too, was run before."""
    model = make_lenvm(max_position_embeddings=2048)
    scorer = ExactScorer(model, slots=requests, max_length=100, max_candidates=8, fixed_shapes=True)
    guidance = Guide(scorer, eos_token_ids=[EOS], max_candidates=8, drops_rows=False)
    draw = torch.Generator().manual_seed(0)
    names = [name for name in SETTINGS if name != "at_most_used_up"]
    live = [
        GuidedRow(0, i, SETTINGS[names[i % len(names)]], History([3 + i % 5, 4], []), 2)
        for i in range(requests)
    ]
    steps = sampled = alone = 0
    while live and steps < 12:
        rows = [GuidedRow(k, row.key, row.settings, row.history, 2) for k, row in enumerate(live)]
        logits = 20.0 * torch.randn(len(rows), VOCAB, generator=draw)
        guidance.apply(logits, rows)
        steered = [row.steered for row in rows]
        alone += int((logits[steered] > -torch.inf).sum(-1).eq(1).sum())
        tokens = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0].tolist()
        if steps == 0:
            passes, prompts = scorer.stats.passes, scorer.stats.prefilled
        steps += 1
        for row, token in zip(rows, tokens, strict=True):
            row.history.output.append(token)
            if token == EOS or not row.steered:
                guidance.close(row.key)
        live = [r for r in rows if r.history.output[-1] != EOS and r.steered]
        sampled += len(live)
    assert steps > 3 and alone > sampled / 3
    assert scorer.stats.passes - passes == scorer.stats.steps - 1, "one pass a step"
    assert scorer.stats.prefilled == prompts

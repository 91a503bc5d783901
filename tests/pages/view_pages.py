"""Pages of the viewer for tests, from data written down here instead of a model."""

from __future__ import annotations

from typing import Any

import torch

from lenvm_rl.core import length_to_u, td_scores

EVIL = " </script><script>window.executed=1</script><img src=http://127.0.0.1:9/x.png onerror=a()>"


def page(tokens: list[str], *, models: int = 1, gamma: float = 0.99) -> dict[str, Any]:
    """Data of a page with one response. Model m foresees the end, but for one token.

    At token 5 (if there is one) it takes back a guess that was 10 (m + 1) tokens too long, so
    that this is the only token with a score.
    """
    left = torch.arange(len(tokens), 0, -1, dtype=torch.float64)
    series = []
    for m in range(models):
        guess = left.clone()
        if len(tokens) > 6:
            guess[:6] += 10 * (m + 1)
        u = length_to_u(guess, gamma=gamma)
        scores = td_scores(u, gamma=gamma)
        series.append(
            {
                "length": [round(x, 2) for x in guess.tolist()],
                "u": [round(x, 6) for x in u.tolist()],
                "score": [round(x, 6) for x in scores.tolist()],
            }
        )
    names = [f"model-{m}" for m in range(models)]
    response = {
        "id": "p1",
        "sample": 0,
        "source": "unknown",
        "truth": None,
        "ended": True,
        "prompt": f"a prompt {EVIL}",
        "prompt_tokens": 3,
        "tokens": tokens,
        "special": [len(tokens) - 1],
        "notes": [],
        "series": series,
    }
    return {
        "title": f"title {EVIL}",
        "models": [
            {"name": name, "path": name, "gamma": gamma, "target": "return", "policy": None}
            for name in names
        ],
        "responses": [response],
        "left_out": 0,
    }

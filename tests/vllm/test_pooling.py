"""A LenVM as a vLLM pooling model: the model's own values, also of long texts read in chunks."""

import json
import subprocess
import sys

import pytest
import torch

from lenvm_rl.model import LengthValueModel
from lenvm_rl.vllm.values import pooling_engine, read_tokens, reading_of
from tests.vllm.conftest import ENGINE, VOCAB

pytestmark = pytest.mark.slow
TOLERANCE = 5e-5  # of a value: vLLM's kernels beside transformers', in float32


@pytest.fixture(scope="module")
def model(lenvm):
    return LengthValueModel.from_pretrained(lenvm).eval()


def test_values_and_lengths_are_the_models_own(vllm, lenvm, model):
    engine = pooling_engine(str(lenvm), max_num_batched_tokens=256, **ENGINE)
    draw = torch.Generator().manual_seed(0)
    sizes = (1, 5, 77, 300, 600, 639)  # longer ones are read in pieces of at most 256
    sequences = [torch.randint(2, VOCAB, (n,), generator=draw).tolist() for n in sizes]
    readings = read_tokens(engine, model.config, sequences)
    for ids, reading in zip(sequences, readings, strict=True):
        with torch.inference_mode():
            values = model.values(torch.tensor([ids]))[0]
            lengths = model.predicted_lengths(torch.tensor([ids]))[0]
        assert reading.values.shape == (len(ids),)
        torch.testing.assert_close(reading.values, values, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(reading.lengths, lengths, rtol=3e-4, atol=1e-3)
        assert torch.equal(reading.horizons, -reading.values)


def test_predict_gives_the_same_rows_by_both_engines(vllm, lenvm):
    # In processes of their own: vLLM may ask for a real standard output, which a runner inside
    # this one does not have.
    words = [
        sys.executable,
        "-m",
        "lenvm_rl.cli",
        "predict",
        "--lenvm",
        lenvm,
        "--prompts",
        "demo:5",
    ]
    first, second = (
        subprocess.run([*words, *more], capture_output=True, text=True, timeout=300, check=True)
        for more in ([], ["--engine", "vllm", "--dtype", "float32"])
    )
    ours, theirs = (
        [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
        for result in (first, second)
    )
    assert len(ours) == len(theirs) == 5
    for one, other in zip(ours, theirs, strict=True):
        assert other["prompt_id"] == one["prompt_id"]
        assert other["value"] == pytest.approx(one["value"], abs=TOLERANCE)
        assert other["length"] == pytest.approx(one["length"], rel=3e-4)
    assert "tokens/s" in second.stderr


def test_long_lengths_do_not_saturate(model):
    z = torch.tensor([[40.0], [200.0]])  # V is -1 to the last bit of both
    short, long = reading_of(z, model.config).lengths.tolist()
    assert long == pytest.approx(5 * short, rel=1e-4)

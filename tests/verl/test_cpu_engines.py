"""Do verl's own policy and critic compute on a CPU what transformers does, packed as they are?"""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForTokenClassification
from verl.trainer.config import CheckpointConfig
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig
from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

from lenvm_rl.verl.batch import make_batch
from lenvm_rl.verl.cpu.packed_attention import PACKED_SDPA
from tests.tiny import make_policy, make_tokenizer
from tests.verl.engines import LOSS, make_rows


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A causal LM with its tokenizer, as verl loads it."""
    path = tmp_path_factory.mktemp("policy")
    make_policy("llama").save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def worker(path, model_type):
    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type=model_type,
            model_config=HFModelConfig(
                path=str(path),
                use_remove_padding=True,
                enable_gradient_checkpointing=False,
                override_config={"attn_implementation": "sdpa"},
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                use_torch_compile=False,
                mixed_precision={
                    "param_dtype": "fp32",
                    "reduce_dtype": "fp32",
                    "buffer_dtype": "fp32",
                },
                use_dynamic_bsz=True,
                max_token_len_per_gpu=96,
                infer_max_token_len_per_gpu=96,
            ),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10),
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    return worker


def infer(worker, rows, name):
    batch = make_batch(rows, loss=LOSS, workers=1, balance=False)
    tu.assign_non_tensor(batch, global_token_num=None, compute_loss=False)
    return worker.infer_batch(batch)[name].unbind()


def tokens(row):
    return torch.tensor([[*row.prompt_ids, *row.response_ids]])


def test_packed_log_probabilities_are_the_policys(policy):
    rows = make_rows(9, seed=1)
    trained = worker(policy, "language_model")
    assert trained.engine.module.config._attn_implementation == PACKED_SDPA
    model = make_policy("llama")
    for row, got in zip(rows, infer(trained, rows, "log_probs"), strict=True):
        ids = tokens(row)
        with torch.no_grad():
            logprobs = model(ids).logits.log_softmax(-1)[0, :-1]
        wanted = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        assert_close(got[:-1], wanted, atol=1e-5, rtol=0)


def test_a_causal_model_becomes_a_task_critic_without_flash_attention(policy):
    rows = make_rows(9, seed=2)
    critic = worker(policy, "value_model")
    weights = critic.engine.module.state_dict()
    model = AutoModelForTokenClassification.from_pretrained(policy, num_labels=1).eval()
    full = {name: getattr(w, "full_tensor", lambda w=w: w)() for name, w in weights.items()}
    model.load_state_dict(full)
    for row, got in zip(rows, infer(critic, rows, "values"), strict=True):
        with torch.no_grad():
            wanted = model(tokens(row)).logits[0, :, 0]
        assert_close(got, wanted, atol=1e-5, rtol=0)

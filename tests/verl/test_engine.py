"""Does a verl worker train a LenVM as plain torch would, whatever the batching?"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from lenvm_rl.model import (
    LengthValueConfig,
    LengthValueModel,
    load_tokenizer,
    save_checkpoint,
    tokenizer_sha,
)
from lenvm_rl.verl.cpu.packed_attention import PACKED_SDPA
from lenvm_rl.verl.engine import (
    LengthValueEngine,
    check_packing,
    check_sequence_parallel,
    merge_lora,
)
from lenvm_rl.verl.pretrain.objective import LengthValueLoss
from tests.guidance.trunks import make_lenvm as make_trunk_lenvm
from tests.tiny import make_policy, make_tokenizer
from tests.verl.engines import LOSS, fixed_lengths, infer, make_lenvm, make_rows, make_worker, train

ROWS = make_rows(9, cut_every=4)
BATCHINGS = [
    {"packed": packed, "dynamic": dynamic} for packed in (True, False) for dynamic in (True, False)
]


@pytest.fixture(scope="module", params=["state", "candidate"])
def any_head(request, tmp_path_factory):
    """A random LenVM with each kind of head."""
    return make_lenvm(tmp_path_factory.mktemp(request.param) / "init", head=request.param)


@pytest.fixture(scope="module")
def reference(any_head):
    """Logits of one sequence at a time, and loss and gradient norm of the whole batch, in torch."""
    model = LengthValueModel.from_pretrained(any_head, attn_implementation="eager")
    logits, errors = [], []
    for row in ROWS:
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        z = model.length_logits(ids)[0, len(row.prompt_ids) - 1 : -1]
        logits.append(z.detach())
        if not row.truncated:
            remaining = torch.arange(row.length, 0, -1)
            target = -(1 - LOSS.gamma**remaining)
            errors.append((-torch.sigmoid(z) - target) ** 2)
    loss = torch.cat(errors).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return logits, loss.item(), norm.item()


@pytest.mark.parametrize("batching", BATCHINGS, ids=str)
def test_loss_gradient_and_values_do_not_depend_on_the_batching(any_head, reference, batching):
    logits, loss, norm = reference
    worker = make_worker(any_head, **batching)
    for ours, theirs in zip(infer(worker, ROWS, multiple=2), logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    first = train(worker, ROWS, multiple=2)
    assert first["loss"] == pytest.approx(loss, rel=1e-5)
    assert first["mse"] == pytest.approx(loss, rel=1e-5)
    assert first["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert train(worker, ROWS, multiple=2)["loss"] < loss


def test_token_budget_sets_the_number_of_micro_batches(lenvm):
    worker = make_worker(lenvm, dynamic=True, tokens=64)
    shapes = []
    worker.engine.module.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    train(worker, ROWS)
    assert len(shapes) > 2
    assert all(rows == 1 and tokens <= 64 for rows, tokens in shapes)


def test_the_exported_model_predicts_what_the_worker_does(lenvm, tmp_path):
    worker = make_worker(lenvm)
    policy = {"name": "toy", "revision": "1", "tokenizer_sha": tokenizer_sha(make_tokenizer())}
    known = {"sampling": {"temperature": 1.0}, "training": {"rows": 9, "tokens": 90}}
    worker.describe(gamma=LOSS.gamma, policy=policy, answers="correct", **known)
    worker.describe(measured={"mre_s0": 0.1, "step": 4})
    train(worker, ROWS)
    worker.save_length_value_model(str(tmp_path / "lenvm"))

    model = LengthValueModel.from_pretrained(
        tmp_path / "lenvm", gamma=LOSS.gamma, tokenizer=load_tokenizer(tmp_path / "lenvm")
    )
    assert model.config.head_output == "value"
    assert model.config.policy == policy and model.config.sampling == {"temperature": 1.0}
    assert model.config.answers == "correct"
    card = (tmp_path / "lenvm" / "README.md").read_text()
    assert "| trained on | rows 9, tokens 90 |" in card and "mre_s0 0.1, step 4" in card
    for row, ours in zip(ROWS, infer(worker, ROWS), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        theirs = model(ids).logits[0, len(row.prompt_ids) - 1 : -1, 0]
        torch.testing.assert_close(theirs, -torch.sigmoid(ours), rtol=1e-5, atol=1e-5)
    weights = load_file(tmp_path / "lenvm" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert worker.engine.value_config().head_output == "logit"  # the worker goes on training


def test_an_unknown_description_is_refused(lenvm):
    with pytest.raises(ValueError, match=r"no \['discount'\]"):
        make_worker(lenvm).describe(discount=0.9)


def test_checkpoint_beside_the_shards_follows_the_readers_convention(lenvm, tmp_path):
    worker = make_worker(lenvm)
    train(worker, ROWS)
    worker.save_checkpoint(str(tmp_path / "critic"), None, 1)
    config = json.loads((tmp_path / "critic" / "huggingface" / "config.json").read_text())
    assert config["head_output"] == "value" and config["model_type"] == "lenvm"

    resumed = make_worker(lenvm)
    resumed.load_checkpoint(str(tmp_path / "critic"))
    assert train(resumed, ROWS)["loss"] == pytest.approx(train(worker, ROWS)["loss"], rel=1e-6)


def test_lora_trains_adapters_and_head_and_is_exported_merged(lenvm, tmp_path):
    worker = make_worker(lenvm, lora_rank=4, lr=1e-2)
    trained = [n for n, p in worker.engine.module.named_parameters() if p.requires_grad]
    assert sum("lora_" in name for name in trained) == 2 * 2 * 7  # A and B, 2 layers, 7 linears
    assert sum(".score." in name for name in trained) == 4
    assert not any("lora_" in name and "score" in name for name in trained)
    before = {n: p.detach().clone() for n, p in worker.engine.module.named_parameters()}
    losses = [train(worker, ROWS)["loss"] for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    for name, parameter in worker.engine.module.named_parameters():
        moved = not torch.equal(parameter.full_tensor(), before[name].full_tensor())
        assert moved == (name in trained), name

    worker.describe(gamma=LOSS.gamma)
    worker.save_length_value_model(str(tmp_path / "lenvm"))
    model = LengthValueModel.from_pretrained(tmp_path / "lenvm")
    assert not any("lora" in name for name, _ in model.named_parameters())
    for row, ours in zip(ROWS, infer(worker, ROWS), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        theirs = model.length_logits(ids)[0, len(row.prompt_ids) - 1 : -1]
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", ["state", "candidate"])
def test_a_frozen_trunk_stays_the_policys_and_only_the_head_learns(tmp_path, head):
    path = make_lenvm(tmp_path / "init", head=head, frozen_trunk=True)
    worker = make_worker(path, lr=1e-2)
    before = {n: p.detach().clone() for n, p in worker.engine.module.named_parameters()}
    losses = [train(worker, ROWS)["loss"] for _ in range(3)]
    assert losses[2] < losses[1] < losses[0]
    for name, parameter in worker.engine.module.named_parameters():
        moved = not torch.equal(parameter.full_tensor(), before[name].full_tensor())
        assert moved == name.startswith("score."), name
    with pytest.raises(ValueError, match="lora_rank=4 would train adapters.*frozen_trunk"):
        make_worker(path, lora_rank=4)


def test_lora_on_chosen_layers_and_a_name_that_matches_none(lenvm):
    worker = make_worker(lenvm, lora_rank=2, lora_targets=["q_proj", "v_proj"])
    trained = [n for n, p in worker.engine.module.named_parameters() if p.requires_grad]
    assert sum("lora_" in name for name in trained) == 2 * 2 * 2
    with pytest.raises(ValueError, match=r"c_attn.*matches no linear layer.*q_proj"):
        make_worker(lenvm, lora_rank=2, lora_targets=["c_attn"])


def test_merging_by_hand():
    weights = {
        "base_model.model.model.l.base_layer.weight": torch.eye(2),
        "base_model.model.model.l.base_layer.bias": torch.ones(2),
        "base_model.model.model.l.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "base_model.model.model.l.lora_B.default.weight": torch.tensor([[1.0], [0.0]]),
        "base_model.model.score.fc.weight": torch.zeros(1),
    }
    merged = merge_lora(weights, scale=0.5)
    assert set(merged) == {"model.l.weight", "model.l.bias", "score.fc.weight"}
    assert merged["model.l.weight"].tolist() == [[1.5, 1.0], [0.0, 1.0]]


def test_a_plain_language_model_is_refused_with_the_way_out(tmp_path):
    make_policy("qwen2").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'qwen2' model .*not a length value model.*lenvm init"):
        make_worker(tmp_path)


def test_a_damaged_checkpoint_is_named_instead_of_trl(lenvm, tmp_path):
    for file in lenvm.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="holds no weights .model.safetensors"):
        make_worker(tmp_path)


def test_fsdp1_is_refused_on_a_cpu(lenvm):
    with pytest.raises(ValueError, match=r"strategy='fsdp' cannot run on a CPU.*fsdp2"):
        make_worker(lenvm, strategy="fsdp")


def make_stateful_lenvm(path):
    """A LenVM with a convolution over tokens in its first layer."""
    torch.manual_seed(0)
    trunk = AutoConfig.for_model(
        "lfm2",
        **{"vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
        layer_types=["conv", "full_attention"],
    )
    model = LengthValueModel(LengthValueConfig(text_config=trunk, gamma=LOSS.gamma))
    return save_checkpoint(model, make_tokenizer(), path)


def test_packed_rows_are_refused_where_the_trunk_carries_a_state_and_padded_ones_are_right(
    tmp_path,
):
    path = make_stateful_lenvm(tmp_path / "lenvm")
    with pytest.raises(ValueError, match=r"trunk \(lfm2, .*use_remove_padding=false"):
        make_worker(path)
    model = LengthValueModel.from_pretrained(path)
    for row, ours in zip(ROWS, infer(make_worker(path, packed=False), ROWS), strict=True):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        alone = model.length_logits(ids)[0, len(row.prompt_ids) - 1 : -1]
        torch.testing.assert_close(ours, alone, rtol=1e-5, atol=1e-5)


def test_a_sequence_over_several_workers_needs_flash_attention_and_a_state_head():
    check_sequence_parallel(1, attention="sdpa", head="candidate")
    check_sequence_parallel(2, attention="flash_attention_2")
    with pytest.raises(ValueError, match=r"size=2 with attention 'sdpa_packed'.*flash-attn.*=1"):
        check_sequence_parallel(2, attention="sdpa_packed")
    with pytest.raises(ValueError, match=r"head=candidate.*border.*size=1"):
        check_sequence_parallel(2, attention="flash_attention_2", head="candidate")


def test_verls_ordinary_critic_loads_a_lenvm_and_gets_values(lenvm):
    """Not this package's engine: model type value_model, as in anybody's PPO run."""
    from verl.trainer.config import CheckpointConfig
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import FSDPEngineConfig, HFModelConfig
    from verl.workers.engine_workers import TrainingWorker, TrainingWorkerConfig

    from lenvm_rl.verl.batch import make_batch
    from tests.verl.engines import response_states

    worker = TrainingWorker(
        TrainingWorkerConfig(
            model_type="value_model",
            model_config=HFModelConfig(
                path=str(lenvm), override_config={"attn_implementation": "sdpa"}
            ),
            engine_config=FSDPEngineConfig(
                strategy="fsdp2",
                forward_only=True,
                model_dtype="fp32",
                use_torch_compile=False,
                mixed_precision={"param_dtype": "fp32"},
                infer_max_token_len_per_gpu=256,
            ),
            optimizer_config=None,
            checkpoint_config=CheckpointConfig(),
        )
    )
    worker.reset()
    assert not isinstance(worker.engine, LengthValueEngine)
    batch = make_batch(ROWS, loss=LOSS, workers=1)
    tu.assign_non_tensor(batch, global_token_num=None, compute_loss=False)
    values = worker.infer_batch(batch)["values"]
    model = LengthValueModel.from_pretrained(lenvm, gamma=0.5)
    for i, row in enumerate(ROWS):
        ids = torch.tensor([[*row.prompt_ids, *row.response_ids]])
        theirs = model(ids).logits[0, len(row.prompt_ids) - 1 : -1, 0]
        torch.testing.assert_close(response_states(values, batch, i), theirs, rtol=1e-5, atol=1e-5)


def test_training_learns_a_length_that_the_prompt_fixes(lenvm):
    """Prompt [n, n] is answered with n tokens: the value of every state is known exactly."""
    objective = LengthValueLoss(gamma=0.9)
    worker = make_worker(lenvm, lr=1e-2, loss=objective, tokens=512)
    rows = fixed_lengths(range(3, 20))
    errors = [train(worker, rows, loss=objective)["mse"] for _ in range(40)]
    assert errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize("name", ["opt", "gpt_bigcode", "falcon"])
def test_a_trunk_that_cannot_read_packed_rows_is_refused_with_a_remedy(name):
    model = make_trunk_lenvm(name)
    with pytest.raises(ValueError, match="does not read .*use_remove_padding=false"):
        check_packing(model, PACKED_SDPA)

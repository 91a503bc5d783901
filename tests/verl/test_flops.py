"""How many operations does verl count for a LenVM?"""

import pytest
from tensordict import NonTensorData
from verl.utils import flops_counter
from verl.utils import tensordict_utils as tu

from lenvm_rl.model import LengthValueModel
from lenvm_rl.verl import flops
from lenvm_rl.verl.batch import make_batch
from tests.verl.engines import LOSS, make_lenvm, make_rows, make_worker, single_process


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_lenvm(tmp_path_factory.mktemp("lenvm"), gamma=0.95)
    return LengthValueModel.from_pretrained(path).config


def test_products_of_trunk_and_head_are_counted_and_no_vocabulary(config):
    trunk = config.text_config
    hidden, layers = trunk.hidden_size, trunk.num_hidden_layers
    heads = trunk.num_attention_heads
    dim = getattr(trunk, "head_dim", None) or hidden // heads
    kv = trunk.num_key_value_heads * dim
    linear = 3 * hidden * trunk.intermediate_size + hidden * (2 * heads * dim + 2 * kv)
    lengths = [10, 30]
    wanted = 6 * 40 * (layers * linear + hidden * (config.head_hidden_size or hidden))
    wanted += 6 * (100 + 900) * dim * heads * layers
    counter = flops_counter.FlopsCounter(config)
    found, _ = counter.estimate_flops(lengths, 2.0)
    assert found == pytest.approx(wanted / 2.0 / 1e12)
    assert trunk.vocab_size > 0, "the configuration stays as it is"


def test_a_step_logs_the_share_of_the_peak(tmp_path, monkeypatch):
    single_process()
    worker = make_worker(make_lenvm(tmp_path / "lenvm", gamma=0.95))
    monkeypatch.setattr(flops_counter, "get_device_flops", lambda: 1e-3)
    batch = make_batch(make_rows(4), loss=LOSS, workers=1)
    lengths = batch["input_ids"].offsets().diff().tolist()
    tokens = NonTensorData(lengths)
    tu.assign_non_tensor(batch, global_token_num=tokens, update_lr_scheduler=True)
    metrics = tu.get(worker.train_batch(batch), "metrics")
    assert metrics["mfu"] > 0


def test_a_trunk_that_verl_does_not_know_counts_nothing(config, monkeypatch):
    monkeypatch.delitem(flops_counter.ESTIMATE_FUNC, config.text_config.model_type)
    assert flops.estimate(config, 40, [10, 30], 1.0) == 0.0

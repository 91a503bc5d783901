"""Is a CPU a platform that verl can run on?"""

import pytest
import torch
import torch.distributed as dist

from lenvm_rl.verl.cpu import platform as cpu


@pytest.fixture
def platform():
    return cpu.CPUPlatform()


def test_every_method_of_the_platform_interface_answers(platform):
    assert platform.is_available() and platform.is_platform_available()
    assert platform.current_device() == torch.device("cpu")
    assert platform.device_count() == 1
    assert platform.get_device_capability() == (None, None)
    assert platform.communication_backend_name() == "gloo"
    assert platform.cudart() is None and not platform.is_ipc_supported()
    platform.set_device(0)
    platform.synchronize()
    platform.empty_cache()
    platform.set_allocator_settings("expandable_segments:True")
    platform.profiler_start()
    platform.profiler_stop()
    with platform.nvtx_range("step"):
        pass
    assert platform.ray_resource_options(1) == {"num_gpus": 1}
    assert platform.ray_noset_envvars()
    assert platform.visible_devices_envvar() == "CUDA_VISIBLE_DEVICES"


def test_seeding_goes_to_torch(platform):
    platform.manual_seed(3)
    first = torch.rand(2)
    platform.manual_seed_all(3)
    assert torch.equal(first, torch.rand(2))


def test_tensors_move_to_the_current_device(platform):
    assert torch.ones(2).to(platform.current_device()).device.type == "cpu"


def test_the_device_module_reports_the_memory_of_the_process(platform):
    module = platform.device_module
    assert not module.is_available()  # verl's accelerator-only code stays out
    assert module.max_memory_allocated() > 1 << 20
    available, total = module.mem_get_info()
    assert 0 < available <= total
    state = module.get_rng_state()
    first = torch.rand(2)
    module.set_rng_state(state)
    assert torch.equal(first, torch.rand(2))
    stream = module.current_stream()
    stream.wait_stream(module.Stream())
    stream.synchronize()
    stream.record_event()


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("cpu:gloo,cpu:gloo", "cpu:gloo"),
        ("cpu:gloo,cuda:nccl", "cpu:gloo,cuda:nccl"),
        ("gloo", "gloo"),
        (None, None),
    ],
)
def test_a_device_is_named_once(backend, expected):
    assert cpu.single_backend_per_device(backend) == expected


def test_accepting_repeats_wraps_once():
    cpu.accept_repeated_backend()
    wrapped = dist.init_process_group
    cpu.accept_repeated_backend()
    assert dist.init_process_group is wrapped


@pytest.mark.parametrize(("chosen", "wanted"), [("cpu", True), (" CPU ", True), ("nvidia", False)])
def test_the_environment_decides_first(monkeypatch, chosen, wanted):
    monkeypatch.setenv("VERL_PLATFORM", chosen)
    assert cpu.wants_cpu() is wanted


@pytest.mark.parametrize(("cuda", "hip"), [("12.8", None), (None, "6.3")])
def test_a_torch_built_for_an_accelerator_is_left_to_verl(monkeypatch, cuda, hip):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert not cpu.wants_cpu()


@pytest.mark.parametrize(("workers", "threads"), [("1", 4), ("2", 2), ("3", 1), ("8", 1)])
def test_workers_of_a_node_share_its_cores(monkeypatch, workers, threads):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setenv("RAY_LOCAL_WORLD_SIZE", workers)
    try:
        cpu.share_cores()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_ray_inherits_the_number_of_threads_that_torch_chose(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("RAY_LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(cpu.os, "environ", dict(cpu.os.environ))
    cpu.share_cores()
    assert cpu.os.environ["OMP_NUM_THREADS"] == str(torch.get_num_threads())

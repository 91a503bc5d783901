"""Platform for verl on a machine without an accelerator.

A platform object (verl's own extension point), process groups over gloo, and FSDP2 engines that
do not pin memory. One CPU worker takes one Ray "GPU" slot, a plain count that `ray.init` is told
(`ray_kwargs.ray_init.num_gpus`), because verl's resource pools ask for GPUs by that name.

Chosen with VERL_PLATFORM=cpu, or by itself where torch was built without any accelerator.
FSDP1 stays out: its start-up broadcast refuses CPU modules; use `strategy: fsdp2`.
"""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import psutil
import torch
import torch.distributed as dist
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry

PLATFORM = "cpu"


def wants_cpu() -> bool:
    """True when verl will run on the CPU platform in this process."""
    chosen = os.environ.get("VERL_PLATFORM", "").strip().lower()
    return chosen == PLATFORM if chosen else _torch_has_no_accelerator()


def _torch_has_no_accelerator() -> bool:
    # Not "no device is visible": a driver without GPUs may well command workers that have them.
    built = torch.version.cuda or torch.version.hip or getattr(torch, "npu", None)
    return not built


class _Stream:
    """Streams do not exist on a CPU; everything has happened when the call returns."""

    def wait_stream(self, *args, **kwargs) -> None: ...

    def synchronize(self) -> None: ...

    def record_event(self, *args, **kwargs) -> None: ...


def _nothing(*args, **kwargs) -> None:
    """A device call without a meaning on the CPU."""


def _resident_bytes(*args, **kwargs) -> int:
    return psutil.Process().memory_info().rss


def _memory_info(*args, **kwargs) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> ModuleType:
    """The calls verl makes on `torch.<device>`: memory figures are those of the process."""
    module = ModuleType("lenvm_rl.verl.cpu.platform.device")
    module.is_available = lambda: False  # guards verl's accelerator-only code
    module.device_count = lambda: 1
    module.current_device = lambda: torch.device("cpu")
    module.get_device_name = lambda *args, **kwargs: "CPU"
    for name in ("set_device", "synchronize", "empty_cache", "ipc_collect"):
        setattr(module, name, _nothing)
    module.reset_peak_memory_stats = _nothing
    module.set_per_process_memory_fraction = _nothing
    module.memory = SimpleNamespace(_set_allocator_settings=_nothing)
    for name in ("memory_allocated", "memory_reserved"):
        setattr(module, name, _resident_bytes)
        setattr(module, f"max_{name}", _resident_bytes)
    module.mem_get_info = _memory_info
    module.manual_seed = module.manual_seed_all = torch.manual_seed
    module.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    module.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    module.Stream = _Stream
    module.current_stream = lambda *args, **kwargs: _Stream()
    module.stream = torch.cpu.stream
    return module


class CPUPlatform(PlatformBase):
    """verl's platform interface for a machine whose device is its CPU."""

    device_name = PLATFORM
    vendor_name = PLATFORM
    device_module = _device_module()

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        return wants_cpu()

    def current_device(self) -> torch.device:
        return torch.device("cpu")  # an object, not an index: verl calls tensor.to(get_device_id())

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None: ...

    def synchronize(self, device_index: int | None = None) -> None: ...

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None: ...

    def empty_cache(self) -> None: ...

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str):
        yield

    def profiler_start(self) -> None: ...

    def profiler_stop(self) -> None: ...

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None


def single_backend_per_device(backend: str | None) -> str | None:
    """ "cpu:gloo,cpu:gloo" -> "cpu:gloo": torch refuses a device that is named twice."""
    if not isinstance(backend, str) or "," not in backend:
        return backend
    chosen: dict[str, str] = {}
    for part in backend.split(","):
        device, _, name = part.partition(":")
        chosen.setdefault(device, name)
    return ",".join(f"{device}:{name}" for device, name in chosen.items())


def accept_repeated_backend() -> None:
    """Let `init_process_group` accept the backend that verl composes on a CPU; idempotent."""
    original = dist.init_process_group
    if getattr(original, "_lenvm_accepts_repeats", False):
        return

    @functools.wraps(original)
    def init_process_group(backend=None, *args, **kwargs):
        return original(single_backend_per_device(backend), *args, **kwargs)

    init_process_group._lenvm_accepts_repeats = True
    dist.init_process_group = init_process_group


def share_cores() -> None:
    """Give the workers of a node all of its cores; each would compute on one otherwise.

    Ray sets OMP_NUM_THREADS=1 in its actors unless it is set where Ray starts. Set here in the
    driver (to torch's own choice, unless the user has made one), it reaches every worker, which
    takes its share: OMP_NUM_THREADS / workers of its group on this node. A cluster that was
    started beforehand (`ray start`) needs the variable in its own environment.
    """
    asked = os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
    threads = int(asked.split(",")[0])  # a list counts the threads of nested parallelism
    workers = int(os.environ.get("RAY_LOCAL_WORLD_SIZE", "1"))  # set by verl in its workers
    torch.set_num_threads(max(1, threads // workers))


def register() -> None:
    """Make the platform known to verl; adapt processes and groups where it is the one in use."""
    if PlatformRegistry.get(PLATFORM) is not CPUPlatform:
        PlatformRegistry.register(platform=PLATFORM)(CPUPlatform)
    if wants_cpu():
        accept_repeated_backend()
        share_cores()

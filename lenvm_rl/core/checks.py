"""Checks at the door of the core functions: types, shapes, names and Python numbers.

Tensors are checked by dtype and shape only, so no check waits for a GPU; the contents of a
tensor are the caller's. Python numbers are checked by value.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def as_float(
    x: Tensor | float, *, name: str, low: float = -math.inf, high: float = math.inf
) -> Tensor:
    """Return `x` as a float tensor of at least float32.

    Integer, bool, float16 and bfloat16 tensors become float32; float32 and float64 are kept. A
    Python number becomes a float64 scalar tensor, which does not promote tensors it meets.

    Args:
        x: tensor of any shape, or a Python number.
        name: what `x` is, for messages.
        low: smallest legal Python number (inclusive).
        high: largest legal Python number (inclusive).
    Raises:
        ValueError: complex tensor; Python number that is NaN or outside `[low, high]`.
    """
    if not isinstance(x, Tensor):
        if not low <= x <= high:
            raise ValueError(f"{name} must be in [{low:g}, {high:g}], got {x}")
        return torch.tensor(x, dtype=torch.float64)
    if x.is_complex():
        raise ValueError(f"{name} must be real, got a tensor of dtype {x.dtype}")
    if x.dtype in (torch.float32, torch.float64):
        return x
    return x.to(torch.float32)


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have one shape: broadcasting would hide a mistake."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"tensors must have the same shape, got {listed}: nothing is broadcast")


def check_rank(tensor: Tensor, *, name: str, axes: str) -> None:
    """Raise ValueError unless `tensor` has one axis per letter of `axes` ("BT" means [B, T])."""
    if tensor.dim() != len(axes):
        raise ValueError(
            f"{name} must have shape [{', '.join(axes)}], got {tuple(tensor.shape)}: "
            f"add or remove a dimension before the call"
        )


def check_choice(choice: str, *, name: str, known: Sequence[str]) -> str:
    """Return `choice` when it is one of `known`; raise ValueError that lists them otherwise."""
    if choice not in known:
        raise ValueError(f"unknown {name} {choice!r}: use one of {', '.join(known)}")
    return choice


def check_fraction(x: float, *, name: str) -> float:
    """Return `x` as a float when it lies in [0, 1]; raise ValueError otherwise."""
    if not 0.0 <= x <= 1.0:
        raise ValueError(f"{name} must be in [0, 1], got {x}")
    return float(x)


def per_row(x: Tensor | float, *, like: Tensor, name: str) -> Tensor:
    """Return a number or a [B] tensor as [B], at least float32, on the device of `like` [B, T]."""
    row = as_float(x, name=name).to(like.device)
    if row.dim() == 0:
        return row.to(like.dtype).expand(like.shape[0])
    if row.shape != like.shape[:1]:
        raise ValueError(
            f"{name} must be a number or have shape [{like.shape[0]}], got {tuple(row.shape)}"
        )
    return row

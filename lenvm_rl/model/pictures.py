"""Pictures beside token ids: what does a trunk read of one, and where do its tokens stand?

The ids of a prompt hold a run of placeholders for each of its pictures, as many as the trunk makes
features of it. How many that is depends on the picture's size and on the settings of the image
processor, so these travel with token ids: in the metadata of a rollout file (`processor`) and in
the configuration of a LenVM. Positions are the trunk's own (m-rope: text, time, height, width).

Pictures are decoded by Pillow everywhere, so that they have the same pixels with torchvision and
without. A picture that several rows ask about is decoded once.
"""

from __future__ import annotations

import inspect
import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.image_processing_base import ImageProcessingMixin

from lenvm_rl.rollouts import Rollout

MOST_PIXELS = 1 << 26
"""A picture of more is refused before it is decoded."""
_HELD_BYTES = 256 << 20
"""Of processed pictures that are kept for further rows."""
_PLACEHOLDER = ("image_token_id", "image_token_index")
_BACKENDS = ("Pil", "Fast")


class Seen(NamedTuple):
    """A picture as the trunk reads it."""

    pixels: Tensor
    """[patches, values] or [1, channels, height, width] float32."""
    grid: Tensor | None
    """[1, 3] patches in time, height and width, where the trunk asks for it."""
    tokens: int
    """Placeholders that stand for it."""


def sees_pictures(config: Any) -> bool:
    """Whether a trunk or policy of this configuration has a vision tower."""
    return getattr(config, "vision_config", None) is not None


def placeholder_id(config: PretrainedConfig) -> int:
    """The token whose place features of pictures take.

    Raises:
        ValueError: the configuration names none.
    """
    found = next((getattr(config, name, None) for name in _PLACEHOLDER if hasattr(config, name)), 0)
    if not found:
        raise ValueError(
            f"the configuration of this {config.model_type!r} model names no token for pictures "
            f"({', '.join(_PLACEHOLDER)}): take a trunk of Qwen2.5-VL, Qwen3-VL or LLaVA."
        )
    return int(found)


def processor_settings(path: str | Path) -> dict[str, Any]:
    """All settings of the image processor of a directory or hub name, defaults included.

    Raises:
        ValueError: no image processor there, or one that this transformers does not know.
    """
    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} sees pictures, but has no image processor (preprocessor_config.json): how "
            "many tokens a picture has is not known without it. Copy it from the policy's original."
        ) from error
    return json.loads(_processor(said).to_json_string())


def same_processor(one: dict[str, Any], other: dict[str, Any]) -> str:
    """The first setting that differs, as `name: one, other`; "" where pictures are read alike."""
    names = sorted(set(one) & set(other))  # a newer transformers may know more
    return next((f"{n}: {one[n]}, {other[n]}" for n in names if one[n] != other[n]), "")


def _processor(said: dict[str, Any]) -> Any:
    name = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    for backend in _BACKENDS:
        name = name.removesuffix(backend)
    kind = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name, None)
    if not name or kind is None:
        raise ValueError(
            f"transformers {transformers.__version__} has no image processor {name!r}: install "
            "Pillow, and a transformers that knows the policy."
        )
    return kind.from_dict({key: x for key, x in said.items() if key != "image_processor_type"})


class PictureReader:
    """Pictures as one trunk reads them.

    Args:
        config: of the trunk.
        settings: of its image processor, see `processor_settings`.
    """

    def __init__(self, config: PretrainedConfig, settings: dict[str, Any] | None) -> None:
        if not settings:
            raise ValueError(
                f"this {config.model_type!r} trunk sees pictures, but the settings of its image "
                "processor are not known: make the LenVM with `lenvm init --policy`."
            )
        self.settings, self.placeholder = settings, placeholder_id(config)
        self._config, self._processor = config, _processor(settings)
        self._held: OrderedDict[str, Seen] = OrderedDict()
        self._bytes = 0

    def see(self, name: str, data: bytes) -> Seen:
        """A picture by its hash, decoded unless it is at hand.

        Raises:
            ValueError: bytes that are no picture, are broken, or are too many pixels.
        """
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        given = self._processor(images=[_decoded(name, data)], return_tensors="pt")
        grid = given.get("image_grid_thw")
        seen = Seen(given["pixel_values"], grid, self._tokens(given["pixel_values"], grid))
        self._held[name] = seen
        self._bytes += seen.pixels.nbytes
        while self._bytes > _HELD_BYTES and len(self._held) > 1:
            self._bytes -= self._held.popitem(last=False)[1].pixels.nbytes
        return seen

    def see_all(self, row: Rollout) -> list[Seen]:
        """The pictures of a row, in its order.

        Raises:
            ValueError: as `see`; pictures that are nowhere; placeholders that are not theirs.
        """
        names = row.pictures or []
        if names and row.media is None:
            raise ValueError(
                f"prompt {row.prompt_id!r} has pictures, but nothing says where they are: read its "
                "rows with RolloutReader, and leave media-*.parquet beside them."
            )
        seen = [self.see(name, row.media[name].data) for name in names]  # pyright: ignore
        self.check(row, seen)
        return seen

    def check(self, row: Rollout, seen: Sequence[Seen]) -> None:
        """Raise ValueError unless a row's placeholders are those of its pictures."""
        name = f"prompt {row.prompt_id!r}, sample {row.sample_id}"
        if self.placeholder in row.response_ids:
            raise ValueError(
                f"{name}: the response has the token {self.placeholder}, which stands for a "
                "picture: the policy wrote it as text. Leave such rows out."
            )
        runs = _runs(row.prompt_ids, self.placeholder)
        wanted = [picture.tokens for picture in seen]
        if runs == wanted or (sum(runs) == sum(wanted) and len(runs) < len(wanted)):
            return  # pictures may lie side by side
        raise ValueError(
            f"{name}: {len(wanted)} pictures of {wanted} tokens, and the prompt has placeholders "
            f"for {runs}: ids and pictures were not made by this processor together. Sample the "
            "prompts again with `lenvm sample`, which stores both."
        )

    def expand(self, ids: Sequence[int], seen: Sequence[Seen]) -> list[int]:
        """`ids` with one placeholder a picture -> as many as the picture has tokens.

        Raises:
            ValueError: another number of placeholders than of pictures.
        """
        count = sum(token == self.placeholder for token in ids)
        if count != len(seen):
            raise ValueError(
                f"{len(seen)} pictures, and {count} placeholders in the prompt's tokens: the chat "
                "template must put one where each picture stands."
            )
        left = iter(seen)
        return [
            token
            for given in ids
            for token in ([given] * next(left).tokens if given == self.placeholder else [given])
        ]

    def positions(self, ids: Sequence[int], seen: Sequence[Seen]) -> Tensor | None:
        """[4, T] positions of one row: along the text, then time, height and width; None where
        the trunk counts tokens, pictures or not."""
        find = getattr(self._bare, "get_rope_index", None)
        if find is None:
            return None
        along = torch.arange(len(ids))
        grids = [picture.grid for picture in seen if picture.grid is not None]
        if not grids:
            return along.expand(4, -1)
        row = torch.tensor([list(ids)])
        kinds = (row == self.placeholder).int()
        given = {"mm_token_type_ids": kinds, "image_grid_thw": torch.cat(grids)}
        known = inspect.signature(find).parameters
        found, _ = find(row, **{name: x for name, x in given.items() if name in known})
        return torch.cat([along[None], found[:, 0]])

    def beside(
        self, ids: Sequence[Sequence[int]], seen: Sequence[Sequence[Seen]], *, width: int
    ) -> dict[str, Tensor]:
        """What goes into the trunk beside [B, width] ids that are padded on the right.

        Args:
            ids: fed tokens of each row.
            seen: pictures of each row.
        """
        out = stacked([picture for row in seen for picture in row])
        places = [self.positions(*row) for row in zip(ids, seen, strict=True)]
        if all(place is not None for place in places):
            padded = [_continued(place, width) for place in places]  # pyright: ignore
            out["position_ids"] = torch.stack(padded, dim=1)
        return out

    @cached_property
    def _bare(self) -> nn.Module:
        """The trunk without weights, which knows its positions."""
        with torch.device("meta"):
            return AutoModel.from_config(self._config)

    def _tokens(self, pixels: Tensor, grid: Tensor | None) -> int:
        vision = self._config.vision_config
        if grid is not None:
            return int(grid.prod()) // vision.spatial_merge_size**2
        patches = (pixels.shape[-2] // vision.patch_size) * (pixels.shape[-1] // vision.patch_size)
        return patches + (getattr(self._config, "vision_feature_select_strategy", "") == "full")


def stacked(seen: Sequence[Seen]) -> dict[str, Tensor]:
    """Pictures in the order of their placeholders, as arguments of a trunk."""
    if not seen:
        return {}
    out = {"pixel_values": torch.cat([picture.pixels for picture in seen])}
    grids = [picture.grid for picture in seen if picture.grid is not None]
    return out | ({"image_grid_thw": torch.cat(grids)} if grids else {})


def _decoded(name: str, data: bytes) -> Any:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height <= MOST_PIXELS:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"picture {name:.16} ({len(data)} bytes) cannot be decoded ({error}): it is broken or "
            "no picture. Replace it, or leave its prompt out."
        ) from error
    raise ValueError(
        f"picture {name:.16} has {width} x {height} pixels, more than {MOST_PIXELS}: make it "
        "smaller; the processor would shrink it anyway."
    )


def _runs(ids: Sequence[int], token: int) -> list[int]:
    """Lengths of the runs of `token`."""
    runs, before = [], False
    for given in ids:
        if given == token:
            runs = [*runs[:-1], runs[-1] + 1] if before else [*runs, 1]
        before = given == token
    return runs


def _continued(places: Tensor, width: int) -> Tensor:
    """[4, T] -> [4, width]: padding goes on counting, so that no new sequence begins there."""
    more = torch.arange(1, width - places.shape[1] + 1)
    return torch.cat([places, places[:, -1:] + more], dim=1)

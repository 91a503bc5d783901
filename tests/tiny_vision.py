"""Tiny random vision-language policies of three families, and pictures, made on the spot."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.tiny import VOCAB, make_tokenizer

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava")
PLACEHOLDER, BEGIN, END = 5, 6, 7
_TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
_MARKS = {
    "image_token_id": PLACEHOLDER,
    "video_token_id": 8,
    "vision_start_token_id": BEGIN,
    "vision_end_token_id": END,
}
_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
_PATCHES = {"out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2}
_CONFIGS = {
    "qwen2_5_vl": {
        "text_config": _TEXT,
        "vision_config": {**_TOWER, **_PATCHES, "fullatt_block_indexes": [1], "window_size": 56},
        **_MARKS,
    },
    "qwen3_vl": {
        "text_config": _TEXT,
        "vision_config": {
            **_TOWER,
            **_PATCHES,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 64,
        },
        **_MARKS,
    },
    "llava": {
        "text_config": {**_TEXT, "model_type": "llama", "rope_parameters": None},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        "image_token_index": PLACEHOLDER,
    },
}


def make_vision_policy(family: str, path: Path) -> Path:
    """A directory with weights, tokenizer and image processor; no chat template."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **_CONFIGS[family])
    AutoModelForImageTextToText.from_config(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    make_processor(family).save_pretrained(path)
    return path


def make_processor(family: str, **settings):
    if family == "llava":
        from transformers import LlavaImageProcessorPil

        sizes = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
        return LlavaImageProcessorPil(**{**sizes, **settings})
    from transformers import Qwen2VLImageProcessorPil

    sizes = {"patch_size": 14, "merge_size": 2, "min_pixels": 28**2, "max_pixels": 16 * 28**2}
    return Qwen2VLImageProcessorPil(**{**sizes, **settings})


def picture(seed: int = 0, width: int = 84, height: int = 56) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()

"""Small rollout files with known contents."""

import numpy as np
import pyarrow.parquet as pq

from lenvm_rl.rollouts import Rollout, RolloutWriter

SHA = "tokenizer-a"
EOS = 0


def make_rows(prompts=10, samples=4, *, seed=0, max_length=20, source=lambda p: "math"):
    """Completions of several prompts, adjacent, about one in eight of them cut."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt in range(prompts):
        for sample in range(samples):
            length = int(rng.integers(1, max_length + 1))
            truncated = bool(rng.random() < 0.125)
            body = rng.integers(1, 60, size=length - (not truncated)).tolist()
            rows.append(
                Rollout(
                    prompt_id=f"p{prompt}",
                    sample_id=sample,
                    prompt_ids=[61, prompt // 50 + 1, prompt % 50 + 1],
                    response_ids=body + ([] if truncated else [EOS]),
                    finish_reason="length" if truncated else "stop",
                    data_source=source(prompt),
                )
            )
    return rows


def key(row):
    return row.prompt_id, row.sample_id


def damage(shard, column="response_ids"):
    """Flip a byte inside the data of a shard's first row group."""
    info = pq.read_metadata(shard).row_group(0)
    chunks = [info.column(n) for n in range(info.num_columns)]
    chunk = next(c for c in chunks if c.path_in_schema.startswith(column))
    data = bytearray(shard.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0xFF
    shard.write_bytes(data)


def write_rows(path, rows, **settings):
    """Write rows to a new rollout directory and return its path."""
    settings = {"tokenizer_sha": SHA, "vocab_size": 64, "eos_ids": [EOS], **settings}
    with RolloutWriter(path, **settings) as writer:
        writer.append(rows)
    return path

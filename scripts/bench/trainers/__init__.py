"""Parts of pretrain.py: sizes and data, the three trainers, what the hardware could do."""

"""verl edge: pretraining of length value models on verl's critic workers, on GPUs or on a CPU.

The one way in is `python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=lenvm_pretrain`
(see recipes/pretrain). `plugin` registers everything with verl; nothing here edits verl's files.

    plugin, lazy      what is registered and when, and a check that says so aloud
    cpu               the CPU platform: FSDP2 over gloo, one Ray "GPU" slot per CPU worker
    settings          the `lenvm:` block, and the verl settings that would be ignored otherwise
    facts, objective  what a rollout file holds, what is trained on it, and whether it fits
    offline           rollout file -> batches, resumable in the middle of an epoch
    on_policy         verl's rollout engine -> rollout file -> batches
    replica           a transformers rollout engine for machines without vLLM
    batch, loss       rollouts -> verl's no-padding batch -> lenvm_rl.core
    engine, worker    FSDP engine of a length value model (raw logits, LoRA, merged export)
    packed_attention  sequences in one row, without flash-attn and without a mask
    validation        held-out metrics, accumulated as a stream
    step_metrics      what is logged about a step
    checkpoint        what is written when, so that a kill at any moment leaves a way back
    trainer           the trainer mode that ties these together

Importing this package imports nothing; its modules need `pip install "lenvm-rl[verl]"`.
"""

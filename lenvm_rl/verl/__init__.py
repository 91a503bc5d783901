"""verl edge: pretraining of length value models on verl's critic workers, on GPUs or on a CPU.

The one way in is `python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=lenvm_pretrain`
(see recipes/pretrain). `plugin` registers everything with verl; nothing here patches verl's files.

    plugin      what is registered, and a check that says so aloud
    cpu         the CPU platform: FSDP2 over gloo, one Ray "GPU" slot per CPU worker
    settings    the `lenvm:` block, and the verl settings that would be ignored otherwise
    engine      FSDP engine of a length value model (raw logits, LoRA, merged export)
    packed_attention  sequences in one row, without flash-attn and without a mask
    facts       sizes and origin of a rollout file, refusals
    lazy        registration that waits for verl's own imports
    worker      verl's training worker with an export method
    loss        verl's loss signature -> lenvm_rl.core
    batch       rollouts -> verl's no-padding batch
    offline     rollout file -> batches, resumable in the middle of an epoch
    on_policy   verl's rollout engine -> rollout file -> batches
    validation  held-out metrics, accumulated as a stream
    checkpoint  what is written when, so that a kill at any moment leaves a way back
    trainer     the trainer mode that ties these together
    replica     a transformers rollout engine for machines without vLLM

Importing this package imports nothing; its modules need `pip install "lenvm-rl[verl]"`.
"""

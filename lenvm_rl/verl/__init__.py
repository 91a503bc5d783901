"""verl edge: length value models are pretrained, and judge policies in training; GPUs or a CPU.

The ways in are `python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=lenvm_pretrain` (see
recipes/pretrain) and `=lenvm` (see recipes/grpo_length, ppo_length, budget). `plugin` registers
everything with verl; nothing here edits verl's files.

    plugin            what is registered and when, and a check that says so aloud
    seams             where verl is extended, asked at start instead of its version
    batch             completions -> verl's no-padding batch; completions off verl's queue
    engine, worker    FSDP engine of a length value model (raw logits, LoRA, merged export)
    checkpoint        what is written when, so that a kill at any moment leaves a way back
    data_checks       is the data what the settings take it for, and can it be graded

`pretrain`, a length value model:

    settings          the `lenvm:` block, and the verl settings that would be ignored otherwise
    facts, objective  what a rollout file holds, what is trained on it, and whether it fits
    offline           rollout file -> batches, resumable in the middle of an epoch
    on_policy         verl's rollout engine -> rollout file -> batches
    metrics           of a step, and of held-out completions, accumulated as a stream
    trainer           the trainer mode that ties these together

`rl`, a policy beside its length critic:

    policy_settings   its `lenvm:` block, and what makes no sense is refused
    length_critic     a LenVM on workers of its own beside verl's actor and critic
    length_state      what a checkpoint keeps of the length term
    rollout_batch     a step's completions as tensors
    group_rewards     published length rewards over the samples of a prompt, and GDPO
    reward_manager    true token counts for reward functions
    rollout_guidance  rollouts of vLLM that the LenVM guides, and the right policy ratio
    agent_loop        a prompt's own target on its way to vLLM; tokens counted where they are known
    policy_metrics    lengths, sizes of terms, drift of the critic, alarms
    policy_trainer    the trainer mode that ties these together

`cpu`, verl without an accelerator:

    platform          FSDP2 over gloo, one Ray "GPU" slot per CPU worker
    replica, weights  a transformers rollout engine for machines without vLLM
    packed_attention  sequences in one row, without flash-attn and without a mask

Importing this package imports nothing; its modules need the extra `verl`.
"""

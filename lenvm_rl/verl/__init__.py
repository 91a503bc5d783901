"""verl edge: length value models are pretrained, and judge policies in training; GPUs or a CPU.

The ways in are `python -m verl.trainer.main_ppo ... trainer.v1.trainer_mode=lenvm_pretrain` (see
recipes/pretrain) and `=lenvm` (see recipes/grpo_length, ppo_length, budget). `plugin` registers
everything with verl; nothing here edits verl's files.

    plugin, lazy      what is registered and when, and a check that says so aloud
    seams             where verl is extended, asked at start instead of its version
    cpu               the CPU platform: FSDP2 over gloo, one Ray "GPU" slot per CPU worker
    settings          the `lenvm:` block, and the verl settings that would be ignored otherwise
    facts, objective  what a rollout file holds, what is trained on it, and whether it fits
    offline           rollout file -> batches, resumable in the middle of an epoch
    on_policy         verl's rollout engine -> rollout file -> batches
    replica, weights  a transformers rollout engine for machines without vLLM
    queue             completions as they lie in verl's TransferQueue
    batch, loss       rollouts -> verl's no-padding batch -> lenvm_rl.core
    engine, worker    FSDP engine of a length value model (raw logits, LoRA, merged export)
    packed_attention  sequences in one row, without flash-attn and without a mask
    validation        held-out metrics, accumulated as a stream
    step_metrics      what is logged about a step
    checkpoint        what is written when, so that a kill at any moment leaves a way back
    trainer           the trainer mode that ties these together

A policy in training:

    policy_settings   its `lenvm:` block, and what makes no sense is refused
    length_critic     a LenVM on workers of its own beside verl's actor and critic
    rollout_batch     a step's completions as tensors
    length_state      what a checkpoint keeps of the length term
    data_columns      has every prompt the number that a setting reads
    data_truths       can the reward function grade every prompt
    group_reward      published length rewards over the samples of a prompt
    generated_tokens  tokens that the policy wrote in a session, counted where they are known
    reward_manager    true token counts for reward functions
    rollout_guidance  rollouts of vLLM that the LenVM steers, and the right policy ratio
    guided_agent_loop how a prompt's own target reaches vLLM
    gdpo              GDPO as an estimator choice
    critic_drift      how wrong the length critic is on fresh responses
    policy_metrics    lengths, sizes of terms, alarms
    policy_trainer    the trainer mode that ties these together

Importing this package imports nothing; its modules need the extra `verl`.
"""

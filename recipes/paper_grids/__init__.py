"""Grids of pretraining runs: the paper's figures 3, 5 and 6 (size, data, choices of the method).

    python -m recipes.paper_grids scaling --rollouts runs/demo/rollouts/sampled --out runs/grid
    python -m recipes.paper_grids ablation --rollouts runs/demo/rollouts/sampled --out runs/grid

data       a rollout file split by prompt, and its nested subsets
cell       one training run: what it is, and how it is done
grid       all runs of a grid, each once; tables of their results
scaling    trunk, prompts, samples per prompt
ablation   target, batches, precision, gamma, weighting
draw       figures and terminal table
verl       runs by verl's trainer, for sizes that one process cannot do
"""

"""Evaluations: numbers from rollout files, saved as JSON and tables, drawn from the numbers.

prediction       how good are the predictions of a LenVM, where, beside which baselines
length_control   does a guided policy end where it is asked to
tradeoff         accuracy against length under guidance
scheduling       what predictions are worth to a server's queue
length_tokens    which words change the expected length
grids            grids of small training runs: scaling and ablation
result           JSON lines, CSV and JSON on disk
run_all          several evaluations, each once, whatever happens to the others
"""

"""Evaluations: sample, measure, save the numbers, draw figures from the numbers.

sampling     completions of prompts into a rollout file, resumable, with transformers
openai_*     the same through OpenAI-compatible servers
states       Monte Carlo continuations from states inside responses
values       a LenVM's outputs along rollouts, in padded batches
prediction   how good are the predictions? numbers of spec section "Evaluation"
scheduling   what are predictions worth to a server? orders of service in a simulation
length_tokens   which words change the expected length?
plots        one figure per question
view         values along responses, as a page to open from disk
report       all results of a run directory on one page
all_runs     several evaluations, each once, whatever happens to the others
results      JSON lines, CSV and JSON on disk
"""

from lenvm_rl.evals.prediction import PredictionReport, evaluate_prediction, run_prediction
from lenvm_rl.evals.sampling import SamplingReport, sample_to_file
from lenvm_rl.evals.states import sample_states

__all__ = [
    "PredictionReport",
    "SamplingReport",
    "evaluate_prediction",
    "run_prediction",
    "sample_states",
    "sample_to_file",
]

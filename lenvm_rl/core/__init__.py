"""The mathematics of length value models: tensors in, tensors out, on torch alone.

`values` converts lengths, values and logits; `targets` holds the parameterisations; `returns` and
`truncated` the targets of each token; `losses` and `masked` the training loss; `metrics`,
`boundary`, `length_tokens` and `lifebench` the evaluation; `candidates`, `tilt` and `guidance` the
steering of generation; `advantages`, `correct_answers`, `recalibration`, `shaping`, `controllers`
and `ranking` reinforcement learning with a length critic.
"""

from lenvm_rl.core.advantages import (
    NORMALISATIONS,
    check_scale,
    combine,
    lam_for_length,
    length_advantage,
    normalise_advantage,
)
from lenvm_rl.core.boundary import noise_corrected_mre, noise_floor, prompt_boundary_length
from lenvm_rl.core.candidates import select_candidates
from lenvm_rl.core.controllers import (
    CONTROLLERS,
    Constant,
    Controller,
    DualAscent,
    Schedule,
    make_controller,
)
from lenvm_rl.core.correct_answers import (
    BASELINES,
    CLAMP,
    centre_correct,
    clamp_to_lead,
    correct_term,
    lead_over_wrong,
)
from lenvm_rl.core.guidance import MODES, Guided, RowNumbers, forbids_eos, guide, tokens_left
from lenvm_rl.core.length_tokens import td_scores
from lenvm_rl.core.lifebench import (
    CONTROLS,
    lifebench_deviation,
    lifebench_official_score,
    lifebench_score,
)
from lenvm_rl.core.losses import (
    binary_cross_entropy,
    censor,
    censored_huber,
    censored_squared_error,
    huber,
    squared_error,
)
from lenvm_rl.core.masked import masked_mean, masked_sum
from lenvm_rl.core.metrics import (
    POSITIONS,
    Calibration,
    at_positions,
    calibration,
    kendall_tau,
    mean_relative_error,
    noise_corrected_r2,
    r2,
    relative_error,
    relative_error_by_position,
)
from lenvm_rl.core.ranking import Ranking, shortest_of_group
from lenvm_rl.core.recalibration import Recalibration, recalibrate
from lenvm_rl.core.returns import (
    discounted_returns,
    gae,
    lambda_returns,
    length_rewards,
    packed_discounted_returns,
    packed_remaining_lengths,
    remaining_length,
)
from lenvm_rl.core.shaping import (
    BUDGETS,
    budget_advantage,
    budget_potential,
    shaping_rewards,
)
from lenvm_rl.core.targets import (
    TARGETS,
    check_target,
    label,
    length_of_prediction,
    predict,
    predicted_length,
    value_of_logit,
)
from lenvm_rl.core.tilt import tilt, tilt_to_mean
from lenvm_rl.core.truncated import TRUNCATIONS, boundary_weights, length_targets, value_targets
from lenvm_rl.core.values import (
    check_gamma,
    gamma_for_length,
    gamma_from_lengths,
    length_to_logit,
    length_to_u,
    length_to_value,
    logit_error_floor,
    logit_to_length,
    logit_to_u,
    logit_to_value,
    resolution_limit,
    u_to_length,
    value_to_length,
    value_to_logit,
)

__all__ = [
    "BASELINES",
    "BUDGETS",
    "CLAMP",
    "CONTROLLERS",
    "CONTROLS",
    "MODES",
    "NORMALISATIONS",
    "POSITIONS",
    "TARGETS",
    "TRUNCATIONS",
    "Calibration",
    "Constant",
    "Controller",
    "DualAscent",
    "Guided",
    "Ranking",
    "Recalibration",
    "RowNumbers",
    "Schedule",
    "at_positions",
    "binary_cross_entropy",
    "boundary_weights",
    "budget_advantage",
    "budget_potential",
    "calibration",
    "censor",
    "censored_huber",
    "censored_squared_error",
    "centre_correct",
    "check_gamma",
    "check_scale",
    "check_target",
    "clamp_to_lead",
    "combine",
    "correct_term",
    "discounted_returns",
    "forbids_eos",
    "gae",
    "gamma_for_length",
    "gamma_from_lengths",
    "guide",
    "huber",
    "kendall_tau",
    "label",
    "lam_for_length",
    "lambda_returns",
    "lead_over_wrong",
    "length_advantage",
    "length_of_prediction",
    "length_rewards",
    "length_targets",
    "length_to_logit",
    "length_to_u",
    "length_to_value",
    "lifebench_deviation",
    "lifebench_official_score",
    "lifebench_score",
    "logit_error_floor",
    "logit_to_length",
    "logit_to_u",
    "logit_to_value",
    "make_controller",
    "masked_mean",
    "masked_sum",
    "mean_relative_error",
    "noise_corrected_mre",
    "noise_corrected_r2",
    "noise_floor",
    "normalise_advantage",
    "packed_discounted_returns",
    "packed_remaining_lengths",
    "predict",
    "predicted_length",
    "prompt_boundary_length",
    "r2",
    "recalibrate",
    "relative_error",
    "relative_error_by_position",
    "remaining_length",
    "resolution_limit",
    "select_candidates",
    "shaping_rewards",
    "shortest_of_group",
    "squared_error",
    "td_scores",
    "tilt",
    "tilt_to_mean",
    "tokens_left",
    "u_to_length",
    "value_of_logit",
    "value_targets",
    "value_to_length",
    "value_to_logit",
]

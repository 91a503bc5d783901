"""Length prediction: how good, where, beside which baselines."""

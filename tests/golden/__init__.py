"""Golden figures: what version 0.1 gave, so that the house can be moved without moving a number.

    subjects.py    what is measured; the only place that imports the package
    figures.json   what came out; rollouts.json, 24 completions of the shipped policy

`GOLDEN=write pytest tests/golden` writes both files anew: for a change that is meant to change
figures, which then says so.
"""

"""Which distribution over the candidates does a length request ask for?"""

MODES = ("off", "tilt", "scale", "equal", "equal_soft", "at_most", "at_least")

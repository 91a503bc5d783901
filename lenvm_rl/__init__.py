"""Length Value Models: generation length as a value to train, read and steer (arXiv 2604.27039).

Importing this package needs torch alone. The edges import what they need:
`lenvm_rl.model` transformers, `lenvm_rl.rollouts` pyarrow, `lenvm_rl.verl` verl and Ray.
"""

__version__ = "0.1.0"

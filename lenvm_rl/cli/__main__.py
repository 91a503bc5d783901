"""`python -m lenvm_rl.cli`."""

from lenvm_rl.cli import main

main()

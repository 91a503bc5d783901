"""Which words change the expected length."""

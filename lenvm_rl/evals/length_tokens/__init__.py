"""Words that change the expected length."""

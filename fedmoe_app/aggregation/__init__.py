"""Client updates into the next global state, as a scheme says."""

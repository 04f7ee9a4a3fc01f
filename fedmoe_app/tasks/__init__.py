"""Tasks: how examples become batches, a loss and a score."""

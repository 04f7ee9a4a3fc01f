"""A model with only some of its experts in memory."""

"""Rows of a language model: what they hold, chat templates, and their tokens."""

"""The real app with late nodes."""

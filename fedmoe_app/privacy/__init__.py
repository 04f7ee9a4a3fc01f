"""Privacy: what a curious server, and whoever gets the model, can learn of one client."""

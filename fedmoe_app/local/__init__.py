"""The client side: tasks, training loop, evaluation."""

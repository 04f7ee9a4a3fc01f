"""The client side: a round of local training, and what a node keeps."""

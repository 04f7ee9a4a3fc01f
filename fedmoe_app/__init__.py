"""Federated fine-tuning of Mixture-of-Experts language models, as a Flower app."""

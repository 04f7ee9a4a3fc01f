"""Federated fine-tuning of Mixture-of-Experts language models, as a Flower app."""

import logging

# bitsandbytes warns at import, once a process, that an optional CPU kernel is not installed. peft
# imports it whether or not a model is quantised.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

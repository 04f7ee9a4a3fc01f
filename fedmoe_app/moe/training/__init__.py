"""Train chosen experts: their own parameters, LoRA, and fast grouped kernels."""

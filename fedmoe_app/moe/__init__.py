"""The model side: find MoE layers, read and train single experts, record routing."""

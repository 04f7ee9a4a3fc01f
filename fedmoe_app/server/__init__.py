"""The server side: rounds, clients, transport, checkpoints."""

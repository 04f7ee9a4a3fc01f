"""The ``fedmoe`` command: one file a command."""

"""The commands of ``fedmoe``, a file each; whatever lies here is on the command line."""

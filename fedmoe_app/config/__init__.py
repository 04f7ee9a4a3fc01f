"""The run config and the node config: types, defaults, checks; and the files that hold them."""

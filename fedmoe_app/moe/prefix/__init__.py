"""A frozen prefix: the layers below the first trained one, whose hidden states never change.

:mod:`~fedmoe_app.moe.prefix.find` says where it ends, :mod:`~fedmoe_app.moe.prefix.replay` runs a
model from there on, :mod:`~fedmoe_app.moe.prefix.states` holds the hidden states.
"""

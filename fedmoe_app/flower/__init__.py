"""What depends on Flower's version, and nothing else.

The other rooms use what Flower promises to keep: ``flwr.app``, ``flwr.serverapp`` and
``flwr.clientapp``. What lies deeper is imported here alone (a test looks for it elsewhere), and
this room imports nothing of fedmoe. Where lines of releases differ, each has an adapter:
:mod:`~fedmoe_app.flower.grpc_fleet` for 1.39, :mod:`~fedmoe_app.flower.http_fleet` from 1.40 on.
``docs/reference/flower.md`` says what differs for users.
"""

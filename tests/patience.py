"""How long tests wait for what must happen."""

PATIENCE = 60
"""How long anything may take on a machine that is busy with other things, in seconds.

What hangs takes longer still; what may take no longer than so much says so itself.
"""

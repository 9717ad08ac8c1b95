"""``trainwright run``: the same plan, carried out as processes on this machine."""

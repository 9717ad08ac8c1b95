"""What the operator costs, on a control plane on loopback with simulated nodes: ``make bench-operator``.

Every bench starts a control plane of its own, prints one table, and says of each figure that has a limit whether it
keeps it. Where a machine that is busy with other things would blur a time, it is a ratio to a peer measured in the same
run, or the processor time of the operator's process alone.
"""

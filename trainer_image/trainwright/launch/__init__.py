"""The launcher: torch's elastic agent, the supervision of the ranks, and the decision about how the pod ends."""

"""How the processes of a run work together: what they agree on, gather, and how they stop as one."""

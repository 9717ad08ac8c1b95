"""How the processes of a run work together: strategies, collectives, and stopping at the same step."""

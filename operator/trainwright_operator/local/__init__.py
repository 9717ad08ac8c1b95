"""``trainwright run``: executes the plan of a job as processes on this machine."""

"""The commands that follow jobs in a cluster: watch, logs, report, describe. They are read-only."""

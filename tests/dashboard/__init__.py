"""The chart's dashboard and alerts on a real Prometheus that scrapes two real operators: ``make dashboard``."""

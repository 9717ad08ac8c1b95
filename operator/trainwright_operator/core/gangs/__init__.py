"""Pods that start together or not at all: one file for each way that a cluster offers."""

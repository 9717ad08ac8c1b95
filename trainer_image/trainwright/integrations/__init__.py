"""Optional integrations of a run, one file each: adapters, kernels, progress displays, the operator, model cards."""

"""What a run can be connected with, one file each: adapters, kernels, displays, the operator, model cards."""

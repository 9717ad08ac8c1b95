"""Where the pods of an attempt run, and what the accelerators there need: one file a vendor."""

"""From a dataset to the batches of one rank: order, sharding, streams, collators, and resuming within an epoch."""

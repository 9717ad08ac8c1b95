"""From a dataset to the batches of one rank: order, shares, streams, collators, and resuming in the middle."""

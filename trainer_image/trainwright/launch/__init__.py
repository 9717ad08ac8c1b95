"""What the launcher is made of: torch's elastic agent, the watch over the ranks, and the verdict on how a pod ends."""

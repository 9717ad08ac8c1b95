"""What a run looked like: read from its files or its job, summarized, drawn, and written as a page."""

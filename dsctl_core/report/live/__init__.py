"""Serve a page about the runs in folders that follows them as they go. It reads, and never writes."""

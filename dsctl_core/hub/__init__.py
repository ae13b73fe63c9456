"""Model hubs: what is there, getting it whole, and giving results."""

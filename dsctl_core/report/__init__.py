"""Pages and tables about runs, datasets and caches."""

"""Create HTML pages and tables for runs, datasets and caches."""

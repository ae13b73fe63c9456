"""Dawn, a family that exists for tests alone."""

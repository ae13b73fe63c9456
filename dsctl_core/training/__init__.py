"""Training: the plan, the module, the loop, its callbacks, and what a run leaves behind."""

"""Train models: the plan, the module, the loop, its callbacks and its output files."""

"""Save and load the state of a run, all that resuming it to the bit needs, in `OUT/state/step-N/`, without pickle."""

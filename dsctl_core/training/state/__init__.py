"""The state of a run: all that continuing it to the bit needs, in `OUT/state/step-N/`, without a pickle."""

"""Pure: rewards, prompt filter, GAPG, the optimiser and the update."""

"""Group rollouts from the device LLM, and the way between text and tokens."""

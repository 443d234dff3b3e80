"""The device LLM: configuration, weights, attention, forward / prefill / decode."""

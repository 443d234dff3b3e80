"""Checkpoints of pretrained LLMs: weights in and out, their vocabulary, nothing executed."""

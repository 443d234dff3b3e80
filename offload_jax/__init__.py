"""Teach a device LLM by reinforcement learning when to hand a question to the cloud."""

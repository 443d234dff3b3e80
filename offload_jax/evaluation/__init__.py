"""Policies over test prompts: records, metrics, tables and plots."""

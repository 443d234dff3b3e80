"""Countdown: data, tokenizer, supervised traces, solver and verifier."""

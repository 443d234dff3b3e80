"""Grade-school arithmetic in words, for pretrained device LLMs."""

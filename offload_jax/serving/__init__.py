"""The trained pair behind an OpenAI-compatible endpoint: the device LLM attempts, the cloud helps."""

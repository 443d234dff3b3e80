"""The trained pair behind an OpenAI-compatible endpoint: the device attempts, the cloud helps."""

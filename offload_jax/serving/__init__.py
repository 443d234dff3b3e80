"""The trained pair behind an OpenAI-compatible endpoint: the device tries, the cloud helps."""

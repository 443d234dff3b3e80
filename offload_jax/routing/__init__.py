"""The rivals that decide from outside the device LLM: trained classifiers as routers."""

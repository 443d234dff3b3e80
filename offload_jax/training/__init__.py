"""The shell: settings, stages, checkpoints, logs, and the run itself."""

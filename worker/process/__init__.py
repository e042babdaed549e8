"""The worker's process: memory, processors, standard error and the watchdog."""

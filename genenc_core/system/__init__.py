"""Process and machine utilities: limits, threads, child processes, exits, memory."""

"""What a run leaves behind: metrics log, tables and plots."""

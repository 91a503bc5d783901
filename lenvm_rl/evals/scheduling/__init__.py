"""What predictions are worth to a server's queue."""

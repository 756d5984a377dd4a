"""What is known, read from the topics alone."""

"""Finished folders and their names."""

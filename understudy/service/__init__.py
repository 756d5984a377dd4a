"""One service's process and its HTTP basics."""

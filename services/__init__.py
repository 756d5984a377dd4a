"""The four stations of the belt. No service imports another; they share only `understudy` and the bus."""

"""What producers, worker and subscribers share. Imports nothing of `worker`."""

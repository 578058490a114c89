"""Training of the anatomy network: label maps, simulated scans, and the task of the training loop."""

"""Training from simulated scans: data, losses, and one loop."""

"""Training of the segmentation and anatomy networks: samples, losses, and one loop."""

"""From standardised images to probabilities: ensembles, sliding windows, and what is kept of them."""

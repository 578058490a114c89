"""From standardised images to masks: weights, ensembles, sliding windows and postprocessing."""

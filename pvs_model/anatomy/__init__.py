"""Brain mask and regions of one scan of any contrast, resolution and orientation, with or without the skull."""

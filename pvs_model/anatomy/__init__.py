"""Brain mask and regions of a scan of any contrast, resolution and orientation, with or without the skull."""

"""Every network of the registry, trained at an equal budget and scored alike."""

"""From the scans of a case to the arrays that a network sees: alignment, preparation and the network's grid."""

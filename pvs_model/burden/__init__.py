"""How much: perivascular spaces counted, measured and put on rating scales, from a mask and its regions."""

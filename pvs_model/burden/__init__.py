"""Burden: perivascular spaces counted, measured and rated, from a mask and its regions."""

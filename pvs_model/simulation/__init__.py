"""Simulates brain MRI with known perivascular spaces from label maps or phantoms."""

"""Simulated brain MRI with known perivascular spaces: anatomy, tubes, contrast, artefacts, engine."""

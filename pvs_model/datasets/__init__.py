"""Data to train and to test on: simulated and labelled cases, real scans with inserted PVS, label maps."""

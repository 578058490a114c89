"""Benchmark of networks: all models of the zoo, trained with equal budgets and scored on the same cases."""

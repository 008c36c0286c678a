"""Recipes from molecules: prepare, train, evaluate, generate, explain, demo."""

"""Renting: from prices and checks to a managed job that runs until it is done."""

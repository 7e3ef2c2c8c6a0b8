"""Measures cost at given acceptance rates, without trained weights."""

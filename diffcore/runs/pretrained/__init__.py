"""Weights as one small file with a card beside it. Those that ship with the toolkit lie here."""

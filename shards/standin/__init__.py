"""The stand-in for Cartoon Set: its artwork and files, and reading its colours back."""

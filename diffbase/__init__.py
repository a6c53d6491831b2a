"""What every room stands on: command lines, files, pages, and what this machine and this process have.

Imports nothing of the house. Loads neither torch nor numpy.
"""

"""What every other package uses: command lines, files, pages, and what this machine and this process have.

Imports no other package of the toolkit, and loads neither torch nor numpy.
"""

"""Connections from every node's supervisor to rank 0's, over which both prove who they are."""

"""``submit --auto``: settings and size chosen by plan, profile and queue, and what they promise."""

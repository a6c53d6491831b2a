"""A followed or planned step for other programs' viewers."""

"""A step's memory measured: every tensor followed, beside what torch and the system count."""

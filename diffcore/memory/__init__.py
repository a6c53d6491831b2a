"""Memory anatomy: where the bytes of a run are, measured, beside what the system says of the process."""

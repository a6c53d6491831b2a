"""Everything measured of one run's samples, and the page that shows it."""

"""What follows the ends of an attempt's processes: pure functions of exits and the run's ledger."""

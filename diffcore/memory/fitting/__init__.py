"""What fits a card, in the order of the time that a step is modelled to take, and the same turned round."""

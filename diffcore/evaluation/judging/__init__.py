"""The judge: a classifier trained on real images, what it says of drawn ones, and how sure that is."""

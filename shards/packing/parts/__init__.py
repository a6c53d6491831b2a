"""A pack that several machines share: what each one packs, and how the parts become one folder."""

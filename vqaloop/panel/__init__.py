"""Measures what each judge of a panel says of an encode, and fuses it to one label."""

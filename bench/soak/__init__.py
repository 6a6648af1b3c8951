"""Everything at once, for long: does what it takes stay the same, and do the promises hold to the end?"""
